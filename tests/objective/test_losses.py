"""Eq. 3 against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.objective.losses import masked_loss


def case(batch=2, channels=3, side=12, tokens=3, cells=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reconstruction, target = torch.randn(2, batch, channels, side, side, generator=generator, dtype=dtype)
    mask = torch.rand(batch, tokens, tokens, generator=generator) < 0.5
    mask[:, 0, 0] = True
    weights = None
    if cells is not None:
        weights = 1 + 5 * torch.rand(batch, cells, cells, generator=generator, dtype=dtype)
    return reconstruction, target, mask, weights


def looped(reconstruction, target, mask, weights):
    """Eq. 3, one pixel at a time."""
    batch, channels, height, width = target.shape
    total = count = 0.0
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                if not mask[b, y * mask.shape[1] // height, x * mask.shape[2] // width]:
                    continue
                weight = 1.0
                if weights is not None:
                    weight = float(weights[b, y * weights.shape[1] // height, x * weights.shape[2] // width])
                for c in range(channels):
                    total += weight * abs(float(reconstruction[b, c, y, x]) - float(target[b, c, y, x]))
                    count += 1
    return total / count


CELLS = [1, 3, 6, 12, 4, 2]  # coarser than, equal to, finer than 3 x 3 mask tokens; the last two do not nest in them


def test_equation_3_by_hand():
    target = torch.zeros(1, 1, 2, 2)
    reconstruction = torch.tensor([[[[1.0, -2.0], [3.0, 4.0]]]])
    mask = torch.tensor([[[True, True], [False, True]]])
    weights = torch.tensor([[[1.0, 10.0], [100.0, 2.0]]])
    loss, unweighted = masked_loss(reconstruction, target, mask, weights)
    assert loss.item() == pytest.approx((1 * 1 + 10 * 2 + 2 * 4) / 3)
    assert unweighted.item() == pytest.approx((1 + 2 + 4) / 3)


@pytest.mark.parametrize("cells", [None, *CELLS])
def test_equals_plain_loops(cells):
    reconstruction, target, mask, weights = case(cells=cells)
    loss, unweighted = masked_loss(reconstruction, target, mask, weights)
    assert loss.item() == pytest.approx(looped(reconstruction, target, mask, weights), rel=1e-12)
    assert unweighted.item() == pytest.approx(looped(reconstruction, target, mask, None), rel=1e-12)


def test_oblong_images_and_grids():
    reconstruction, target = torch.randn(2, 1, 3, 8, 12, dtype=torch.float64)[:, None].unbind(0)
    reconstruction, target = reconstruction.reshape(1, 3, 8, 12), target.reshape(1, 3, 8, 12)
    mask = torch.rand(1, 2, 3) < 0.6
    mask[0, 1, 2] = True
    weights = torch.rand(1, 4, 2, dtype=torch.float64)
    loss, _ = masked_loss(reconstruction, target, mask, weights)
    assert loss.item() == pytest.approx(looped(reconstruction, target, mask, weights), rel=1e-12)


@given(st.sampled_from(CELLS), st.integers(0, 999))
def test_weights_of_one_are_no_weights(cells, seed):
    reconstruction, target, mask, weights = case(cells=cells, seed=seed)
    loss, unweighted = masked_loss(reconstruction, target, mask, torch.ones_like(weights))
    plain, _ = masked_loss(reconstruction, target, mask)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    assert unweighted.item() == pytest.approx(plain.item(), rel=1e-12)


@pytest.mark.parametrize("mask_side, cells", [(3, None), (3, 6), (3, 1), (3, 3), (4, 3)])
def test_gradcheck(mask_side, cells):
    reconstruction, target, mask, weights = case(batch=2, channels=2, tokens=mask_side, cells=cells)
    reconstruction.requires_grad_()

    def both(value):
        return masked_loss(value, target, mask, weights)

    assert torch.autograd.gradcheck(both, (reconstruction,))


@pytest.mark.parametrize("cells", [None, 4])
def test_only_masked_pixels_matter(cells):
    reconstruction, target, mask, weights = case(cells=cells)
    loss, _ = masked_loss(reconstruction, target, mask, weights)
    pixels = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    changed = torch.where(pixels, reconstruction, torch.full_like(reconstruction, 1e3))
    assert masked_loss(changed, target, mask, weights)[0] == loss
    changed.requires_grad_()
    masked_loss(changed, target, mask, weights)[0].backward()
    assert ((changed.grad != 0) == pixels).all()


@given(st.floats(0.01, 100), st.sampled_from(CELLS))
def test_loss_is_linear_in_the_weights(factor, cells):
    reconstruction, target, mask, weights = case(cells=cells)
    loss, unweighted = masked_loss(reconstruction, target, mask, weights)
    scaled, same = masked_loss(reconstruction, target, mask, factor * weights)
    assert scaled.item() == pytest.approx(factor * loss.item(), rel=1e-10)
    assert same == unweighted


def test_weights_are_a_constant():
    reconstruction, target, mask, weights = case(cells=3)
    reconstruction.requires_grad_()
    weights.requires_grad_()
    masked_loss(reconstruction, target, mask, weights)[0].backward()
    assert weights.grad is None and reconstruction.grad is not None


@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype, target_dtype):
    reconstruction, target, mask, weights = case(side=48, tokens=3, cells=6, dtype=torch.float32)
    reconstruction, target = reconstruction.to(dtype), target.to(target_dtype)
    loss, unweighted = masked_loss(reconstruction, target, mask, weights)
    exact, exact_unweighted = masked_loss(reconstruction.double(), target.double(), mask, weights.double())
    assert loss.dtype == unweighted.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert unweighted.item() == pytest.approx(exact_unweighted.item(), rel=1e-5)


@pytest.mark.parametrize("cells", [None, 4])
def test_empty_mask_gives_zero(cells):
    reconstruction, target, mask, weights = case(cells=cells)
    reconstruction.requires_grad_()
    loss, unweighted = masked_loss(reconstruction, target, torch.zeros_like(mask), weights)
    loss.backward()
    assert loss.item() == unweighted.item() == 0.0
    assert not reconstruction.grad.any()


@pytest.mark.parametrize("tokens, cells", [(5, 4), (3, 5), (24, 3), (5, None)])
def test_grids_that_do_not_divide_the_image_are_refused(tokens, cells):
    with pytest.raises(ValueError, match="does not divide a 12x12 image"):
        masked_loss(*case(tokens=tokens, cells=cells))
