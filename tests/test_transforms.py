"""Views, samples, and the cached map step."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from modeling_kamim import transforms
from modeling_kamim.data import keep_encoded, load_images
from modeling_kamim.errors import InputError
from modeling_kamim.images import BadImageError
from modeling_kamim.keypoints import KeypointDetector
from modeling_kamim.transforms import (
    DENSITY_COLUMN,
    DENSITY_GRID,
    MaskedImageTransform,
    RandomView,
    View,
    attach_keypoint_density,
    decode_density,
    density_grid,
    prepare_images,
)
from modeling_kamim.weighting import CellWeighting, cell_density

lengths = st.one_of(st.integers(1, 12), st.integers(1, 2000))
flips = st.booleans()


def rng(seed=0):
    return np.random.default_rng(seed)


def png(array):
    return {"bytes": cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes(), "path": None}


def transform(**changes):
    settings = MaskedImageTransform(
        image_column="image",
        image_size=64,
        patch_size=8,
        mask_patch_size=16,
        mask_ratio=0.6,
        weight_patch_size=8,
        random_view=RandomView(),
        weighting=CellWeighting(),
        detector=KeypointDetector(),
    )
    return dataclasses.replace(settings, **changes)


# Views


@given(lengths, lengths, st.floats(0.05, 1), st.integers(0, 2**32))
def test_random_views_stay_inside_any_image(height, width, min_scale, seed):
    view = RandomView(min_scale)(height, width, rng(seed))
    assert view.top >= 0 and view.left >= 0 and view.height >= 1 and view.width >= 1
    assert view.top + view.height <= height and view.left + view.width <= width
    assert (view.image_height, view.image_width) == (height, width)


@given(st.integers(60, 900), st.floats(0.76, 1.32), st.floats(0.1, 1), st.integers(0, 2**32))
def test_crops_keep_their_area_and_ratio_where_the_image_has_room(height, image_ratio, min_scale, seed):
    width = round(height * image_ratio)
    view = RandomView(min_scale)(height, width, rng(seed))
    slack = 2 / min(view.height, view.width)  # rounding to whole pixels
    assert (1 - slack) * min_scale <= view.height * view.width / (height * width) <= 1
    assert (1 - slack) * 3 / 4 <= view.width / view.height <= (1 + slack) * 4 / 3


@pytest.mark.parametrize("height, width", [(10, 1000), (1000, 10), (1, 50), (50, 1), (1, 1), (3, 2), (200, 900)])
def test_strips_get_torchvisions_central_crop(height, width):
    view = RandomView(0.67)(height, width, rng())
    if max(height, width) / min(height, width) > 2:  # no crop of 0.67 of the area fits the ratio
        top, left, crop_height, crop_width = RandomResizedCrop.get_params(
            torch.empty(3, height, width), scale=[0.67, 1.0], ratio=[3 / 4, 4 / 3]
        )
        assert (view.height, view.width) == (crop_height, crop_width)
        assert (view.top, view.left) == (top, left)
    assert 1 <= view.height <= height and 1 <= view.width <= width


def test_crops_are_distributed_as_torchvisions():
    draw, generator = RandomView(0.3), rng()
    ours = np.array([(v.top, v.left, v.height, v.width) for v in (draw(300, 400, generator) for _ in range(3000))])
    image = torch.empty(3, 300, 400)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, scale=[0.3, 1.0], ratio=[3 / 4, 4 / 3]) for _ in range(3000)]
    )
    error = ours.std(axis=0) * (2 / 3000) ** 0.5
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4.5 * error).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08)


def test_flips_follow_their_probabilities():
    generator = rng()
    views = [RandomView(1.0, (1, 1), 0.5, 0.5)(32, 32, generator) for _ in range(2000)]
    both = np.array([(view.horizontal_flip, view.vertical_flip) for view in views])
    assert np.abs(both.mean(axis=0) - 0.5).max() < 0.06
    assert abs((both[:, 0] & both[:, 1]).mean() - 0.25) < 0.05  # independent
    only_horizontal = [RandomView(horizontal_flip=1.0, vertical_flip=0.0)(32, 32, generator) for _ in range(50)]
    assert all(view.horizontal_flip and not view.vertical_flip for view in only_horizontal)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"min_scale": 0.0}, "crop_min_scale"),
        ({"min_scale": 1.1}, "crop_min_scale"),
        ({"horizontal_flip": -0.1}, "horizontal_flip"),
        ({"vertical_flip": 1.5}, "vertical_flip"),
    ],
)
def test_impossible_views_are_refused(settings, name):
    with pytest.raises(InputError, match=name):
        RandomView(**settings)


def test_view_of_an_image_is_crop_resize_flip(photographs):
    image = photographs[0]
    view = View(10, 20, 60, 80, *image.shape[:2])
    crop = cv2.resize(image[10:70, 20:100], (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(view.of_image(image, 32), crop)
    assert np.array_equal(dataclasses.replace(view, horizontal_flip=True).of_image(image, 32), crop[:, ::-1])
    assert np.array_equal(dataclasses.replace(view, vertical_flip=True).of_image(image, 32), crop[::-1])
    whole = View.whole(*image.shape[:2]).of_image(image, 128)
    assert np.array_equal(whole, image)


@given(st.data(), flips, flips)
def test_density_of_an_aligned_crop_is_the_cropped_and_flipped_density(data, horizontal, vertical):
    """An image of 128 x 192 px, so that a cell of the grid is 2 x 3 px."""
    side = data.draw(st.integers(1, 64))
    row, column = data.draw(st.integers(0, 64 - side)), data.draw(st.integers(0, 64 - side))
    density = rng(side).random((64, 64), np.float32)
    view = View(2 * row, 3 * column, 2 * side, 3 * side, 128, 192, horizontal, vertical)
    expected = density[row : row + side, column : column + side]
    expected = expected[:, ::-1] if horizontal else expected
    expected = expected[::-1] if vertical else expected
    assert np.allclose(view.of_density(density, side), expected, atol=1e-4)


@given(st.data(), st.sampled_from([1, 3, 8]), flips, flips)
def test_density_of_any_crop_is_its_average_over_pixels(data, num_cells, horizontal, vertical):
    """Against the grid blown up to the pixels of a 320 x 448 image and averaged."""
    density = rng(num_cells).random((64, 64), np.float32)
    pixels = np.kron(density.astype(np.float64), np.ones((5, 7)))
    height = num_cells * data.draw(st.integers(1, 320 // num_cells))
    width = num_cells * data.draw(st.integers(1, 448 // num_cells))
    top, left = data.draw(st.integers(0, 320 - height)), data.draw(st.integers(0, 448 - width))
    crop = pixels[top : top + height, left : left + width]
    crop = crop[:, ::-1] if horizontal else crop
    crop = crop[::-1] if vertical else crop
    expected = crop.reshape(num_cells, height // num_cells, num_cells, width // num_cells).mean(axis=(1, 3))
    view = View(top, left, height, width, 320, 448, horizontal, vertical)
    assert np.allclose(view.of_density(density, num_cells), expected, atol=1e-4)


@given(st.integers(0, 2**32))
def test_image_and_density_stay_together(seed):
    """The image is a picture of the density: so are all of their views."""
    density = cv2.resize(rng(1).random((5, 5), np.float32), (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    image = cv2.resize(density, (384, 256), interpolation=cv2.INTER_LINEAR)
    image = np.repeat((255 * image).round().astype(np.uint8)[..., None], 3, axis=2)
    view = RandomView(0.3)(256, 384, rng(seed))
    seen = cell_density(view.of_image(image, 64)[..., 0] / 255.0, 8)
    assert np.abs(view.of_density(density, 8) - seen).max() < 0.03


# Samples


def test_sample_has_the_models_inputs(photographs):
    sample = transform()({"image": png(photographs[0])}, rng())
    assert sample.keys() == {"pixel_values", "bool_masked_pos", "keypoint_weights"}
    pixels, mask, weights = sample["pixel_values"], sample["bool_masked_pos"], sample["keypoint_weights"]
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert mask.shape == (64,) and mask.dtype == torch.bool and mask.sum() == 4 * 10
    assert weights.shape == (8, 8) and weights.dtype == torch.float32 and weights.min() == 1.0 < weights.max()


def test_simmim_has_no_weights_and_the_same_views_and_masks(photographs):
    row = {"image": png(photographs[0])}
    simmim = transform(weighting=None)(row, rng(4))
    kamim = transform()(row, rng(4))
    assert simmim.keys() == {"pixel_values", "bool_masked_pos"}
    assert all(torch.equal(simmim[key], kamim[key]) for key in simmim)


def test_without_a_random_view_the_whole_image_is_shown(photographs):
    sample = transform(random_view=None)({"image": png(photographs[1])}, rng())
    expected = cv2.resize(photographs[1], (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(sample["pixel_values"].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("weighting", ["keypoint", "shuffled"])
def test_sample_depends_on_its_generator_alone(photographs, weighting):
    row = {"image": png(photographs[0])}
    draw = transform(weighting=CellWeighting(weighting))
    first = draw(row, rng(7))
    torch.manual_seed(1)
    np.random.seed(1)
    again, other = draw(row, rng(7)), draw(row, rng(8))
    for key in first:
        assert torch.equal(first[key], again[key])
        assert not torch.equal(first[key], other[key])


@pytest.mark.parametrize("cell", [4, 8, 32])
@pytest.mark.parametrize("name", ["fast", "orb"])
def test_online_weights_are_those_of_the_finished_crop(photographs, name, cell):
    detector = KeypointDetector(name)
    sample = transform(detector=detector, weight_patch_size=cell, image_size=96)({"image": png(photographs[0])}, rng(3))
    pixels = sample["pixel_values"].permute(1, 2, 0).contiguous().numpy()
    expected = CellWeighting()(cell_density(detector(pixels), cell), rng())
    assert np.array_equal(sample["keypoint_weights"].numpy(), expected)


def test_map_weights_follow_the_flips_of_the_pixels():
    """White pixels and keypoints share one corner, wherever it goes."""
    corner = np.zeros((64, 64), np.uint8)
    corner[:32, :32] = 255
    row = {"image": png(np.repeat(corner[..., None], 3, axis=2)), DENSITY_COLUMN: png(corner)}
    draw = transform(detector=None, random_view=RandomView(1.0, (1.0, 1.0)))
    seen = set()
    for seed in range(40):
        sample = draw(row, rng(seed))
        bright = sample["pixel_values"][0, ::8, ::8] > 0
        assert torch.equal(sample["keypoint_weights"] > 1.0, bright)
        assert sample["keypoint_weights"].max().item() == pytest.approx(np.exp(4), rel=1e-5)
        seen.add(tuple(map(int, bright.nonzero()[0])))
    assert seen == {(0, 0), (0, 4), (4, 0), (4, 4)}


# The map step


def test_density_grid_of_odd_shapes():
    for shape in [(1, 1), (1, 3000), (3000, 1), (64, 64), (40, 1000), (700, 300)]:
        grid = density_grid(rng().integers(0, 256, (*shape, 3), dtype=np.uint8), KeypointDetector(), 70)
        assert grid.shape == (DENSITY_GRID, DENSITY_GRID) and grid.dtype == np.uint8
    assert not density_grid(np.full((80, 90, 3), 128, np.uint8), KeypointDetector(), 70).any()


def test_density_grid_is_the_density_of_its_cells(astronaut):
    """At 4 px a cell: the same averages as Eq. 2's, to the rounding of 8 bits."""
    detector = KeypointDetector()
    resized = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_LINEAR)
    grid = density_grid(astronaut, detector, 256)
    assert np.abs(grid / 255 - cell_density(detector(resized), 4)).max() <= 0.51 / 255


@pytest.fixture
def folder(tmp_path, astronaut, photographs):
    """Four photographs in a folder; a is the first, d the last."""
    path = tmp_path / "photos"
    path.mkdir()
    for name, image in zip("abcd", [astronaut[:256, 100:356], *photographs[:3]], strict=True):
        Image.fromarray(image).save(path / f"{name}.png")
    return path


def load(folder):
    return keep_encoded(load_images(str(folder))["train"], "image")


def densities(dataset):
    return [png["bytes"] for png in dataset[DENSITY_COLUMN]]


def names(dataset):
    return [Path(image["path"]).stem for image in dataset["image"]]


def test_attached_density_agrees_with_the_online_one(astronaut):
    dataset = datasets.Dataset.from_dict({"image": [png(astronaut)]}).cast_column("image", datasets.Image(decode=False))
    detector = KeypointDetector()
    attached, bad = attach_keypoint_density(dataset, detector, "image", 192)
    assert bad == []
    view = View.whole(*astronaut.shape[:2])
    mapped = view.of_density(decode_density(attached[0][DENSITY_COLUMN]), 24)
    online = cell_density(detector(view.of_image(astronaut, 192)), 8)
    assert np.corrcoef(mapped.ravel(), online.ravel())[0, 1] > 0.7
    assert abs(mapped.mean() - online.mean()) < 0.1


def test_attaching_keeps_the_rows_and_adds_one_column(folder):
    dataset = load(folder)
    attached, bad = attach_keypoint_density(dataset, KeypointDetector(), "image", 64)
    assert bad == [] and set(attached.column_names) == {"image", DENSITY_COLUMN}
    assert names(attached) == list("abcd")
    short_side = round(64 / ((0.67 + 1) / 2) ** 0.5)
    for row, image in zip(attached, dataset, strict=True):
        with Image.open(image["image"]["path"]) as file:
            expected = density_grid(np.asarray(file), KeypointDetector(), short_side)
        assert np.array_equal(decode_density(row[DENSITY_COLUMN]), expected / np.float32(255))


def test_two_processes_give_the_same(folder):
    (folder / "bb.png").write_bytes(b"broken")
    one, bad_of_one = attach_keypoint_density(load(folder), KeypointDetector(), "image", 64, skip_bad_images=True)
    two, bad_of_two = attach_keypoint_density(
        load(folder), KeypointDetector(), "image", 64, skip_bad_images=True, num_proc=2
    )
    assert names(one) == names(two) == list("abcd")
    assert densities(one) == densities(two)
    assert bad_of_one == bad_of_two and len(bad_of_one) == 1


@pytest.mark.parametrize("detector", [KeypointDetector(), None])
def test_bad_images_are_named_or_left_out(folder, detector):
    good = prepare_images(load(folder), "image", 64, detector, skip_bad_images=True)[0]
    half = (folder / "c.png").read_bytes()
    for name, data in {"aa_text": b"not an image", "b_empty": b"", "c_half": half[: len(half) // 2]}.items():
        (folder / f"{name}.png").write_bytes(data)
    if detector is not None:
        with pytest.raises(BadImageError, match="aa_text.png"):
            prepare_images(load(folder), "image", 64, detector)
    kept, bad = prepare_images(load(folder), "image", 64, detector, skip_bad_images=True)
    assert names(kept) == names(good) == list("abcd")
    if detector is not None:
        assert densities(kept) == densities(good)
    assert [next(n for n in ("aa_text", "b_empty", "c_half") if n in line) for line in bad] == [
        "aa_text",
        "b_empty",
        "c_half",
    ]


def test_bad_images_without_a_path_are_named_by_their_row(photographs):
    images = [png(photographs[0]), {"bytes": b"broken", "path": None}, png(photographs[1])]
    dataset = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2]})
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    with pytest.raises(BadImageError, match="row 1"):
        prepare_images(dataset, "image", 64, KeypointDetector())
    kept, bad = prepare_images(dataset, "image", 64, KeypointDetector(), skip_bad_images=True)
    assert kept["label"][:] == [0, 2] and len(bad) == 1 and "row 1" in bad[0]


@pytest.mark.parametrize("detector", [KeypointDetector(), None])
def test_nothing_left_is_an_error(detector):
    dataset = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}] * 2})
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    with pytest.raises(InputError, match="none of the 2 images"):
        prepare_images(dataset, "image", 64, detector, skip_bad_images=True)


def cache_files():
    return {str(path) for path in Path(datasets.config.HF_DATASETS_CACHE).rglob("cache-*.arrow")}


def test_what_changes_the_density_changes_the_cache(folder, monkeypatch):
    dataset = load(folder)

    def new_files(**changes):
        before = cache_files()
        settings = {"detector": KeypointDetector(), "image_size": 64, "min_scale": 0.67, **changes}
        attach_keypoint_density(dataset, settings["detector"], "image", settings["image_size"], settings["min_scale"])
        return len(cache_files() - before)

    assert new_files() == 1
    assert new_files() == 0
    assert new_files(detector=KeypointDetector(parameters={"threshold": 20})) == 1
    assert new_files(detector=KeypointDetector(footprint="point")) == 1
    assert new_files(image_size=96) == 1
    assert new_files(min_scale=0.2) == 1
    assert new_files() == 0
    monkeypatch.setattr(transforms, "KEYPOINTS_VERSION", -1)
    assert new_files() == 1
    monkeypatch.setattr(transforms, "DECODER_VERSION", -1)
    assert new_files() == 1


RUN = """
import json, sys
from pathlib import Path
import numpy as np
from modeling_kamim.data import keep_encoded, load_images
from modeling_kamim.keypoints import KeypointDetector
from modeling_kamim.transforms import MaskedImageTransform, RandomView, attach_keypoint_density
from modeling_kamim.weighting import CellWeighting

folder, cache, may_detect = sys.argv[1:]
if may_detect == "no":
    def refuse(self, image):
        raise SystemExit("detected again")
    detect, KeypointDetector.__call__ = KeypointDetector.__call__, refuse

def files():
    return {path.name: path.stat().st_mtime_ns for path in Path(cache).rglob("cache-*.arrow")}

def attach(*detector):
    dataset = keep_encoded(load_images(folder)["train"], "image")
    return attach_keypoint_density(dataset, KeypointDetector(*detector), "image", 64)[0]

states = []
dataset = attach("fast")
states.append(files())
weights = set()
for temperature in (0.1, 0.5):
    for cell in (8, 16):
        transform = MaskedImageTransform(
            "image", 64, 8, 16, 0.6, cell, RandomView(), CellWeighting("keypoint", temperature), None
        )
        sample = transform(attach("fast")[0], np.random.default_rng(0))
        weights.add(float(sample["keypoint_weights"].max()))
assert len(weights) == 4
states.append(files())
if may_detect == "no":
    KeypointDetector.__call__ = detect
attach("orb")
states.append(files())
print(json.dumps(states))
"""


def test_another_process_finds_the_cache(folder, tmp_path):
    cache = tmp_path / "cache"
    env = {**os.environ, "HF_DATASETS_CACHE": str(cache)}

    def run(may_detect):
        command = [sys.executable, "-c", RUN, str(folder), str(cache), may_detect]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    fast, swept, orb = run("yes")
    assert len(fast) == 1
    assert swept == fast  # temperature and weight_patch_size are applied later
    assert len(orb) == 2
    assert run("no") == [orb, orb, orb]
