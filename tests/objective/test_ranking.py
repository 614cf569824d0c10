"""Errors of patches and their ranking against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.objective.ranking import hard_mask, on_grid, patch_losses, ranking_loss, ranks

seeds = st.integers(0, 2**31)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_errors_of_patches(loss):
    reconstruction, target = drawn(0, 2, 3, 8, 12), drawn(1, 2, 3, 8, 12)
    found = patch_losses(reconstruction, target, (2, 3), loss)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                difference = (reconstruction - target)[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                expected = difference.abs().mean() if loss == "l1" else difference.square().mean()
                assert found[image, 3 * row + column].item() == pytest.approx(expected.item(), rel=1e-5)


@given(seeds)
def test_the_ranking_loss_is_the_mean_over_pairs(seed):
    scores, losses, mask = drawn(seed, 3, 6), drawn(seed + 1, 3, 6), drawn(seed + 2, 3, 6) > 0
    terms, right = [], []
    for image in range(3):
        for i in range(6):
            for j in range(6):
                if mask[image, i] and mask[image, j] and losses[image, i] > losses[image, j]:
                    margin = float(scores[image, i] - scores[image, j])
                    terms.append(math.log1p(math.exp(-margin)))
                    right.append(margin > 0)
    found, accuracy = ranking_loss(scores, losses, mask)
    assert found.item() == pytest.approx(sum(terms) / max(1, len(terms)), abs=1e-5)
    assert accuracy.item() == pytest.approx(sum(right) / max(1, len(right)), abs=1e-6)


def test_gradients_flow_into_scores_alone():
    scores, losses = drawn(0, 2, 5).requires_grad_(), drawn(1, 2, 5).requires_grad_()
    ranking_loss(scores, losses, torch.ones(2, 5, dtype=torch.bool))[0].backward()
    assert scores.grad.abs().sum() > 0 and losses.grad is None


@given(seeds, st.integers(1, 20))
def test_ranks_go_from_0_to_1(seed, count):
    scores = drawn(seed, 2, count)
    found = ranks(scores)
    expected = [[(row < score).sum().item() / max(1, count - 1) for score in row] for row in scores]
    torch.testing.assert_close(found, torch.tensor(expected))


@given(seeds, st.integers(0, 12), st.floats(0, 1))
def test_hard_masks_hold_the_hardest_blocks_and_then_the_first_of_the_order(seed, num_masked, share):
    scores = drawn(seed, 3, 12)
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(seed + row)) for row in range(3)])
    found = hard_mask(scores, order, num_masked, share)
    for image in range(3):
        hardest = scores[image].topk(int(share * num_masked)).indices.tolist()
        others = [block for block in order[image].tolist() if block not in hardest]
        expected = {*hardest, *others[: num_masked - len(hardest)]}
        assert set(found[image].nonzero().flatten().tolist()) == expected


def test_values_of_patches_on_finer_and_coarser_grids():
    patches = drawn(0, 2, 12)
    fine = on_grid(patches, (3, 4), (6, 8))
    assert torch.equal(fine[:, ::2, ::2].flatten(1), patches) and torch.equal(fine[:, 1::2, 1::2].flatten(1), patches)
    coarse = on_grid(fine.flatten(1), (6, 8), (3, 4))
    torch.testing.assert_close(coarse.flatten(1), patches)
    torch.testing.assert_close(on_grid(patches, (3, 4), (3, 2))[0, 0, 0], patches[0, :2].mean())
