"""The weights and the weighted loss as numbers: in range, finite, and exact under autocast to half precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling_kamim import KamimForMaskedImageModeling, build_config
from modeling_kamim.objective.density import resample_density
from modeling_kamim.objective.losses import masked_loss
from modeling_kamim.objective.weighting import MAX_EXPONENT, WEIGHTINGS, CellWeighting, keypoint_weights

CASES = 100
temperatures = st.floats(0.05, 4)
seeds = st.integers(0, 2**32 - 1)
HALVES = [torch.bfloat16, torch.float16]
LARGEST_HALF = torch.finfo(torch.float16).max
SMALLEST_HALF = torch.finfo(torch.float16).smallest_normal


@st.composite
def densities(draw, batch=None):
    """Densities of the cells that divide an image of a multiple of 16 px: whole numbers of keypoint pixels."""
    image_size = 16 * draw(st.integers(1, 24))
    cell = draw(
        st.sampled_from([size for size in (1, 2, 4, 8, 16, 32) if image_size % size == 0 and image_size // size <= 64])
    )
    side = image_size // cell
    generator = np.random.default_rng(draw(seeds))
    share = draw(st.sampled_from([0.0, 0.01, 0.2, 0.75, 1.0]))
    shape = (draw(st.integers(1, 3)) if batch is None else batch, side, side)
    counts = generator.binomial(cell**2, share * generator.random(shape))
    counts.flat[generator.integers(counts.size)] = draw(st.sampled_from([0, cell**2]))
    return torch.from_numpy((counts / cell**2).astype(np.float32))


def exact_weights(density, temperature):
    """Eq. 2 in float64, as it is written."""
    exponentials = np.exp(np.clip(density.numpy().astype(np.float64) / temperature, -MAX_EXPONENT, MAX_EXPONENT))
    return exponentials / exponentials.min(axis=(-2, -1), keepdims=True)


@settings(max_examples=CASES)
@given(densities(), temperatures)
@example(torch.tensor([[[0.0, 1.0]]]), 0.05)
@example(torch.tensor([[[0.0, 1.0]]]), 0.1)
@example(torch.tensor([[[0.0, 1.0]]]), 0.25)
def test_weights_are_those_of_equation_2(density, temperature):
    weights = keypoint_weights(density, temperature)
    assert weights.dtype == torch.float32 and weights.shape == density.shape
    assert weights.isfinite().all() and (weights.amin((1, 2)) == 1.0).all()
    assert weights.max() <= math.exp(min(MAX_EXPONENT, 1 / temperature)) * (1 + 1e-5)
    assert np.allclose(weights, exact_weights(density, temperature), rtol=2e-5, atol=0)


def test_the_largest_weights():
    density = torch.tensor([[0.0, 1.0]])
    for temperature, largest in {0.25: 54.598, 0.1: 22026.5, 0.05: 4.8517e8}.items():
        assert keypoint_weights(density, temperature).tolist() == [[1.0, pytest.approx(largest, rel=1e-5)]]


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("norm", ["none", "mean"])
@settings(max_examples=CASES // 4)
@given(densities(), temperatures, seeds)
def test_every_weighting_is_finite_and_positive(name, norm, density, temperature, seed):
    order = torch.from_numpy(np.random.default_rng(seed).permutation(density[0].numel())).expand(len(density), -1)
    weights = CellWeighting(name, temperature, norm)(density, order)
    assert weights.dtype == torch.float32 and weights.isfinite().all() and (weights > 0).all()
    if norm == "none":
        assert weights.min() >= 1.0
    else:
        assert torch.allclose(weights.mean((1, 2)), torch.ones(len(density)), rtol=1e-4)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.25])
def test_densities_in_half_precision_give_weights_in_float32(dtype, temperature):
    density = torch.tensor([[0.0, 0.5, 1.0]], dtype=dtype)
    with torch.autocast("cpu", dtype):
        weights = CellWeighting("keypoint", temperature)(density)
        resampled = resample_density(density[None].float(), torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 3)
    assert weights.dtype == torch.float32 and weights.isfinite().all()
    assert np.allclose(weights, exact_weights(density.float(), temperature), rtol=2e-5)
    assert resampled.isfinite().all()


@pytest.mark.parametrize("temperature", [0.1, 0.25])
def test_resampling_under_autocast_keeps_the_density(temperature):
    """A matrix product is what autocast would compute in half precision: 1/512 of density is 2% of a weight at 0.1."""
    density = torch.rand(2, 64, 64)
    box = torch.tensor([[0.1, 0.2, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0]])
    expected = CellWeighting("keypoint", temperature)(resample_density(density, box, 24))
    for dtype in HALVES:
        with torch.autocast("cpu", dtype):
            found = CellWeighting("keypoint", temperature)(resample_density(density, box, 24))
        assert torch.allclose(found, expected, rtol=1e-4), (dtype, (found / expected - 1).abs().max())


def loss_case(density, dtype, seed, scale=3.0):
    """Reconstruction in half precision, target, a mask that shows half of the image, and the sides of the cells."""
    generator = torch.Generator().manual_seed(seed)
    batch, side = density.shape[:2]
    pixels = side * 4
    reconstruction = (scale * torch.randn(batch, 3, pixels, pixels, generator=generator)).to(dtype)
    target = torch.randn(batch, 3, pixels, pixels, generator=generator)
    mask = torch.rand(batch, side, side, generator=generator) < 0.6
    mask[:, 0, 0] = True
    return reconstruction.requires_grad_(), target, mask


def exact_loss(reconstruction, target, mask, weights):
    """Eq. 3 in float64, pixel by pixel: the loss, and its gradient."""
    reconstruction, target = reconstruction.detach().double().numpy(), target.double().numpy()
    blown_up = [np.kron(grid.double().numpy(), np.ones((4, 4))) for grid in (weights, mask)]
    weights, mask = (np.stack(np.split(grid, 1))[0].reshape(len(target), 1, *target.shape[2:]) for grid in blown_up)
    factors = weights * mask / (3 * mask.sum())
    difference = reconstruction - target
    return (factors * np.abs(difference)).sum(), factors * np.sign(difference)


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=CASES // 4)
@given(densities(batch=2), temperatures, seeds)
@example(torch.eye(6).expand(2, 6, 6), 0.1, 0)
@example(torch.eye(6).expand(2, 6, 6), 0.25, 0)
def test_the_weighted_loss_of_half_precision_is_exact(dtype, density, temperature, seed):
    """Weights to e^20 times errors, summed over all pixels: float32 throughout, so nothing overflows or gets lost."""
    density = density[:, :16, :16]
    reconstruction, target, mask = loss_case(density, dtype, seed)
    with torch.autocast("cpu", dtype):
        weights = CellWeighting("keypoint", temperature)(density)
        loss, unweighted = masked_loss(reconstruction, target, mask, weights)
    expected, _ = exact_loss(reconstruction, target, mask, weights)
    assert loss.dtype == unweighted.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert unweighted.item() <= loss.item() * (1 + 1e-5)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_largest_error_that_half_precision_holds_times_the_largest_weight(dtype):
    density = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    reconstruction = torch.full((1, 3, 8, 8), 6e4, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype):
        weights = CellWeighting("keypoint", 0.05)(density)
        loss, _ = masked_loss(reconstruction, torch.zeros(1, 3, 8, 8), torch.ones(1, 2, 2, dtype=torch.bool), weights)
    assert loss.item() == pytest.approx(6e4 * (1 + 3 * math.exp(20)) / 4, rel=1e-2)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.25])
@pytest.mark.parametrize("batch_size", [32, 256])
def test_gradients_keep_the_least_weight(temperature, batch_size):
    """bf16 as it is; fp16 with the largest scale at which no gradient overflows, to which a GradScaler converges.

    A batch of the paper's images has 0.6 * 3 * 192**2 masked values an image: without a scale fp16 would lose them.
    """
    num_values = batch_size * 0.6 * 3 * 192**2
    extremes = torch.tensor([1.0, math.exp(1 / temperature)], dtype=torch.float64) / num_values
    in_bf16 = extremes.to(torch.bfloat16).double()
    assert torch.allclose(in_bf16, extremes, rtol=2**-8)
    scale = 2.0 ** math.floor(math.log2(LARGEST_HALF / extremes[1]))
    in_fp16 = (scale * extremes).to(torch.float16).double() / scale
    assert (scale * extremes)[0] >= SMALLEST_HALF
    assert torch.allclose(in_fp16, extremes, rtol=2**-11)


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=CASES // 8)
@given(densities(batch=2), st.sampled_from([0.05, 0.1, 0.25, 1.0]), seeds)
def test_scaled_gradients_are_the_weights(dtype, density, temperature, seed):
    density = density[:, :12, :12]
    reconstruction, target, mask = loss_case(density, dtype, seed)
    weights = CellWeighting("keypoint", temperature)(density)
    _, gradient = exact_loss(reconstruction, target, mask, weights)
    scale = 2.0 ** math.floor(math.log2(LARGEST_HALF / np.abs(gradient).max()))
    with torch.autocast("cpu", dtype):
        loss, _ = masked_loss(reconstruction, target, mask, weights)
    (scale * loss).backward()
    found = reconstruction.grad.double().numpy() / scale
    assert np.isfinite(found).all()
    assert ((found != 0) == (gradient != 0)).all()
    assert np.allclose(found, gradient, rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("model_type", ["vit", "swin"])
@pytest.mark.parametrize("temperature", [0.1, 0.25])
def test_a_model_under_autocast_has_the_loss_of_float32(dtype, model_type, temperature):
    size = 32 if model_type == "vit" else 64
    model = KamimForMaskedImageModeling.from_config(build_config(model_type, "tiny", size)).eval()
    pixels = torch.randn(2, 3, size, size)
    mask_side = size // model.config.patch_size
    mask = torch.rand(2, mask_side**2) < 0.6
    weights = CellWeighting("keypoint", temperature)(torch.rand(2, size // 8, size // 8).round(decimals=1))
    weights[:, 0, 0] = math.exp(1 / temperature)
    with torch.no_grad():
        expected = model(pixels, mask, weights)
        with torch.autocast("cpu", dtype):
            found = model(pixels, mask, weights)
    assert found.loss.dtype == found.masked_l1.dtype == torch.float32
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=2e-2)
    assert found.masked_l1.item() == pytest.approx(expected.masked_l1.item(), rel=2e-2)
