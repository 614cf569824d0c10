"""The evaluation study of docs/results.md: probes, neighbors, depth and reconstructions of several checkpoints.

    python benchmarks/evaluation.py path/to/labelled/images --models outputs/kamim outputs/simmim

Runs the commands that it prints, for each model and for random weights of the same size, gathers them into a report,
and compares the cached probe with scikit-learn's logistic regression on the same features.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoConfig, set_seed

from modeling_kamim.commands.endings import run
from modeling_kamim.data.augmentation import ClassificationTransform
from modeling_kamim.data.loading import DataArguments, keep_encoded, load_labelled_images
from modeling_kamim.data.samples import SampleDataset
from modeling_kamim.evaluation.features import FeatureDataset, extract_features
from modeling_kamim.evaluation.probing import LinearProbe, probe
from modeling_kamim.evaluation.settings import ProbingArguments
from modeling_kamim.models.backbone import load_backbone
from modeling_kamim.models.processor import image_processor
from modeling_kamim.training.trainer import ClassificationTrainer

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_name", help="as for kamim evaluate")
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints of kamim pretrain, of one size")
    parser.add_argument("--model_size", default="tiny", help="of the random weights (default: %(default)s)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluation"))
    args = parser.parse_args()
    image_size = AutoConfig.from_pretrained(args.models[0]).image_size
    random_weights = ("--model_size", args.model_size, "--image_size", str(image_size))
    models = {Path(name).name: ("--model_name_or_path", name) for name in args.models} | {"random": random_weights}
    common = ("--dataset_name", args.dataset_name, "--per_device_eval_batch_size", "64")

    start = time.perf_counter()
    for name, model in models.items():
        output_dir = ("--output_dir", args.output_dir / f"cached_{name}")
        classify("--protocol", "cached", "--probe_layers", "all", *model, *common, *output_dir)
    for name, model in models.items():
        short = ("--num_train_epochs", "1", "--per_device_train_batch_size", "64", "--logging_steps", "50")
        classify("--protocol", "paper", *short, *model, *common, "--output_dir", args.output_dir / f"paper_{name}")
    first, *others = args.models
    reconstruction = ("--mode", "reconstruction", "--model_name_or_path", first, "--max_eval_samples", "500")
    compared = ("--compare_with", *others) if others else ()
    classify(*reconstruction, *compared, *common, "--output_dir", args.output_dir / "reconstruction")
    classify("--report", args.output_dir, "--output_dir", args.output_dir / "report")
    minutes = (time.perf_counter() - start) / 60
    print(f"\nThe commands took {minutes:.1f} minutes; {args.output_dir / 'report' / 'report.md'} holds the tables.")
    for name in args.models:
        compare_with_scikit_learn(args.dataset_name, name)


def classify(*arguments: str | Path) -> None:
    command = ["run_classification.py", *map(str, arguments)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]]).returncode:
        sys.exit("the command failed; its error is above")


def compare_with_scikit_learn(dataset_name: str, model: str) -> None:
    """Print the top-1 of the cached probe of the default layer and that of a logistic regression."""
    cv2.setNumThreads(1)
    set_seed(0)
    train, validation = features_of(dataset_name, model)
    result = probe(LinearProbe(), train.features, train.labels, validation.features, int(train.labels.max()) + 1)
    ours = (result.logits[0].argmax(1) == validation.labels).float().mean().item()
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    regression.fit(train.features[:, 0].numpy(), train.labels.numpy())
    reference = regression.score(validation.features[:, 0].numpy(), validation.labels.numpy())
    print(f"RATIO model={Path(model).name} cached_probe={100 * ours:.2f} scikit_learn={100 * reference:.2f}")


def features_of(dataset_name: str, model: str) -> tuple[FeatureDataset, FeatureDataset]:
    """Features `(num_images, 1, dimension)` of the default layer, of training and validation images."""
    backbone = load_backbone(model, "vit", "tiny", None, "mean")
    layer = backbone.default_layer(None)
    images = load_labelled_images(DataArguments(dataset_name=dataset_name), None, 0.1, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        args = ProbingArguments(output_dir=folder, report_to="none", per_device_eval_batch_size=64)
        trainer = ClassificationTrainer(
            model=backbone, args=args, processing_class=image_processor(backbone.image_size, model)
        )
        transform = ClassificationTransform(
            images.image_column, images.label_column, backbone.image_size, augmentation="none"
        )
        found = []
        for split in (images.train, images.validation):
            columns = [images.image_column, images.label_column]
            samples = SampleDataset(keep_encoded(split, columns[0]).select_columns(columns), transform, seed=0)
            everything = extract_features(trainer, backbone, samples, "Features")
            found.append(FeatureDataset(everything.features[:, layer, None], everything.labels))
    return found[0], found[1]


if __name__ == "__main__":
    run(main)
