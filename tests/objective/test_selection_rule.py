"""Which images are kept."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.errors import InputError
from modeling_kamim.objective.selection_rule import SelectionRule, disparity_score

numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30)


@given(numbers, st.floats(0.01, 1))
def test_patch_aware_keeps_the_highest_scores_and_reversed_the_lowest(scores, ratio):
    scores = torch.tensor(scores)
    count = max(1, int(ratio * len(scores)))
    for name, sign in (("patch_aware", -1), ("reversed", 1)):
        rule = SelectionRule(name, ratio)
        chosen = rule.choose(scores)
        assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == rule.count(len(scores)) == count
        kept = sorted(sign * scores[chosen])
        assert kept == sorted(sign * scores)[:count]


def test_a_score_is_the_mean_error_weighted_by_its_softmax():
    losses, mask = torch.tensor([[1.0, 2.0, 9.0, 3.0]]), torch.tensor([[True, True, False, True]])
    weights = [math.exp(loss) for loss in (1, 2, 3)]
    expected = sum(weight * loss for weight, loss in zip(weights, (1, 2, 3), strict=True)) / sum(weights)
    assert disparity_score(losses, mask).item() == pytest.approx(expected, rel=1e-6)


def test_few_hard_patches_score_higher_than_the_same_mean_everywhere():
    whole = torch.ones(1, 4, dtype=torch.bool)
    assert disparity_score(torch.tensor([[0.0, 0.0, 0.0, 4.0]]), whole) > disparity_score(torch.ones(1, 4), whole)


@pytest.mark.parametrize(
    "settings, words",
    [
        (("best", 0.5), "selection"),
        (("random", 1.5), "selection_ratio is 1.5"),
        (("random", 0.5, 0), "selection_every"),
    ],
)
def test_rules_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        SelectionRule(*settings)
