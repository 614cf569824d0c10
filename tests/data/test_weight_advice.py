"""Which settings of the weights are advised, for photographs and for images that the paper's do not fit."""

import io
import shlex

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from modeling_kamim import KeypointDetector
from modeling_kamim.api.groups import PRETRAINING_ARGUMENTS
from modeling_kamim.commands.parser import parse
from modeling_kamim.data.samples import MaskedImageTransform
from modeling_kamim.data.views import RandomView
from modeling_kamim.data.weight_advice import CONCENTRATED, FLAT, SATURATED, WeightSettings, WeightStatistics, advise

PAPER = WeightSettings(KeypointDetector(), 8, 0.25)
SIZE = 96
RNG = np.random.default_rng(0)
BLANK = [np.full((120, 120, 3), 200, np.uint8)] * 4
NOISE = [RNG.integers(0, 256, (120, 120, 3), dtype=np.uint8) for _ in range(4)]
FAINT = [RNG.normal(128, 4, (120, 120, 3)).clip(0, 255).astype(np.uint8) for _ in range(4)]


def rows_of(images):
    sources = []
    for image in images:
        file = io.BytesIO(image if isinstance(image, bytes) else b"")
        if not isinstance(image, bytes):
            Image.fromarray(image).save(file, "png")
        sources.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": sources}, features=features)


def advice_for(images, settings=PAPER, num_proc=None):
    transform = MaskedImageTransform("image", SIZE, 16, 32, 0.6, settings.weight_patch_size, RandomView())
    return advise(rows_of(images), settings, transform, num_proc)


def test_the_paper_settings_stay_for_photographs(photographs):
    advice = advice_for(photographs)
    assert advice.advised == PAPER and not advice.fault and advice.num_images == len(photographs)
    assert list(advice.measured) == ["fast", *(f"fast, threshold {n}" for n in (5, 20, 40)), "sift", "orb"]
    assert "these settings are fine" in advice.report()


@pytest.mark.parametrize(
    ("images", "settings", "fault", "advised"),
    [
        (BLANK, PAPER, "most images have no keypoints", None),
        (NOISE, PAPER, "the weights are saturated", ("fast", {"threshold": 40}, 0.25)),
        (FAINT, PAPER, "most images have no keypoints", ("fast", {"threshold": 5}, 0.25)),
        (None, WeightSettings(KeypointDetector(), 8, 4.0), "the weights are flat", ("fast", {}, 1.0)),
        (None, WeightSettings(KeypointDetector("orb"), 8, 0.05), "the weights are concentrated", ("orb", {}, 0.25)),
    ],
    ids=["blank", "noise", "faint", "flat", "concentrated"],
)
def test_other_images_and_settings_are_advised_against(photographs, images, settings, fault, advised):
    advice = advice_for(photographs if images is None else images, settings)
    assert fault in advice.fault and fault in advice.report()
    if advised is None:
        assert advice.advised is None and "--weighting none" in advice.report()
        return
    name, parameters, temperature = advised
    assert advice.advised == WeightSettings(KeypointDetector(name, parameters=parameters), 8, temperature)
    assert advice.report().endswith(f"take {advice.advised.options}")
    _, kamim_args, *_ = parse(PRETRAINING_ARGUMENTS, ["--use_cpu", *shlex.split(advice.advised.options)])
    assert kamim_args.detector() == advice.advised.detector and kamim_args.temperature == temperature


@given(arrays(np.float32, (3, 4, 5), elements=st.floats(0, 1, width=32)), st.sampled_from([0.1, 0.25, 1.0]))
def test_statistics_are_those_of_plain_sums(density, temperature):
    found = WeightStatistics.of(density, temperature)
    effective, at_top, every = [], [], []
    for image in density.astype(float):
        weights = [np.exp((cell - image.min()) / temperature) for cell in image.ravel()]
        effective.append(sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights)))
        at_top.append(sum(w >= 0.9 * max(weights) * (1 - 1e-6) for w in weights) / len(weights))
        every += weights
    assert found.mean == pytest.approx(np.mean(every), rel=1e-4)
    assert found.effective == pytest.approx(np.median(effective), rel=1e-3)
    assert abs(found.at_top - np.median(at_top)) <= 1 / 20 + 1e-9  # a weight may lie at the bound
    assert found.without == pytest.approx(np.mean([not image.any() for image in density]))


def test_the_bounds_of_the_effective_cells():
    one = np.zeros((1, 10, 10), np.float32)
    one[0, 3, 4] = 1
    assert WeightStatistics.of(one, 0.05).effective == pytest.approx(1 / 100, rel=1e-3)
    assert WeightStatistics.of(np.full((1, 10, 10), 0.3, np.float32), 0.05).effective == 1
    assert 0 < CONCENTRATED < SATURATED < FLAT < 1


def test_bad_images_are_left_out_and_processes_change_nothing(photographs):
    images = [*photographs, b"no image"]
    advice = advice_for(images)
    assert advice.num_images == len(photographs)
    assert advice_for(images, num_proc=2) == advice
    assert advice_for([b"no", b"image"]) is None
