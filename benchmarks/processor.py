"""How much the features change between the evaluation's resize and that of the published image processor.

    python benchmarks/processor.py CHECKPOINT [--dataset_name path/to/photographs] [--num_images 100]

The evaluation resizes without antialias, transformers' image processor with it.
"""

import argparse

import cv2
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from modeling_kamim.commands.endings import run
from modeling_kamim.data.decoding import decode_image
from modeling_kamim.data.loading import choose_splits, find_image_column, keep_encoded, load_images, subsample


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--dataset_name", help="as for kamim pretrain; the embedded photographs where not given")
    parser.add_argument("--num_images", type=int, default=100)
    args = parser.parse_args()

    dataset, _ = choose_splits(load_images(args.dataset_name))
    column = find_image_column(dataset)
    dataset = subsample(keep_encoded(dataset, column), args.num_images, seed=0)
    processor = AutoImageProcessor.from_pretrained(args.checkpoint)
    model = AutoModel.from_pretrained(args.checkpoint).eval()
    size = model.config.image_size

    pixel_differences, cosines = [], []
    for row in dataset:
        image = decode_image(row[column])
        plain = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        published = processor(Image.fromarray(image), return_tensors="pt").pixel_values
        evaluated = processor(Image.fromarray(plain), do_resize=False, return_tensors="pt").pixel_values
        pixel_differences.append((published - evaluated).abs().mean())
        features = model(torch.cat([published, evaluated])).last_hidden_state.mean(dim=1)
        cosines.append(torch.cosine_similarity(features[0], features[1], dim=0))
    pixels, cosine = torch.stack(pixel_differences), torch.stack(cosines)
    print(f"{len(dataset)} images: mean absolute pixel difference {pixels.mean():.3f} (normalized)")
    print(f"cosine of mean-pooled features: mean {cosine.mean():.4f}, least {cosine.min():.4f}")


if __name__ == "__main__":
    run(main)
