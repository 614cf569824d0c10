"""SimMIM's block masks."""

import math
import random
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.objective.masking import block_mask, random_order


def blocks_of(mask, per_side, tokens):
    """(blocks, tokens of a block) view of a mask."""
    grid = mask.reshape(per_side, tokens, per_side, tokens)
    return grid.transpose(0, 2, 1, 3).reshape(per_side**2, tokens**2)


@given(
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from([1, 4, 16]),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32),
)
def test_exact_number_of_whole_blocks(per_side, tokens, patch_size, ratio, seed):
    block = tokens * patch_size
    mask = block_mask(per_side * block, block, patch_size, ratio, Random(seed))
    assert mask.dtype == bool and mask.shape == ((per_side * tokens) ** 2,)
    blocks = blocks_of(mask, per_side, tokens)
    assert (blocks == blocks[:, :1]).all()
    assert blocks[:, 0].sum() == math.ceil(ratio * per_side**2)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_exact_number_of_whole_blocks_of_a_rectangle(rows, columns, tokens, ratio, seed):
    block = 8 * tokens
    mask = block_mask((rows * block, columns * block), block, 8, ratio, Random(seed))
    grid = mask.reshape(rows * tokens, columns * tokens)
    blocks = grid[::tokens, ::tokens]
    assert np.array_equal(grid, np.kron(blocks, np.ones((tokens, tokens), bool)))
    assert blocks.sum() == math.ceil(ratio * rows * columns)
    if rows == columns:
        assert np.array_equal(mask, block_mask(rows * block, block, 8, ratio, Random(seed)))


@pytest.mark.parametrize(
    "image, block, patch, ratio, masked",
    [(192, 32, 16, 0.6, 22), (224, 32, 16, 0.6, 30), (64, 32, 4, 0.5, 2), (192, 16, 16, 0.4, 58), (64, 32, 16, 0.9, 4)],
)
def test_known_counts(image, block, patch, ratio, masked):
    mask = block_mask(image, block, patch, ratio, Random(0))
    assert mask.sum() == masked * (block // patch) ** 2


def test_same_generator_state_same_mask():
    draw = [block_mask(192, 32, 16, 0.6, Random(seed)) for seed in (5, 5, 6)]
    assert np.array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])
    generator = Random(5)
    assert np.array_equal(block_mask(192, 32, 16, 0.6, generator), draw[0])
    assert not np.array_equal(block_mask(192, 32, 16, 0.6, generator), draw[0])


def test_global_randomness_is_neither_read_nor_moved():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist()

    random.seed(1)
    before = state()
    mask = block_mask(192, 32, 16, 0.5, Random(0))
    assert state() == before
    random.seed(2)
    assert np.array_equal(block_mask(192, 32, 16, 0.5, Random(0)), mask)


def test_all_blocks_are_masked_equally_often():
    generator = Random(0)
    draws = 4000
    counts = sum(block_mask(64, 16, 16, 0.6, generator).astype(int) for _ in range(draws))
    share = 10 / 16  # ceil(0.6 * 16) of 16 blocks
    sigma = math.sqrt(share * (1 - share) / draws)
    assert np.abs(counts / draws - share).max() < 5 * sigma


@given(st.integers(1, 600), st.integers(0, 2**32))
def test_random_order_is_a_permutation(count, seed):
    order = random_order(count, Random(seed))
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(count))
    assert np.array_equal(order, random_order(count, Random(seed)))


def test_all_orders_are_equally_likely():
    generator = Random(0)
    draws = 4800
    counts = Counter(tuple(random_order(4, generator)) for _ in range(draws))
    assert len(counts) == 24
    assert max(abs(count / draws - 1 / 24) for count in counts.values()) < 5 * (1 / 24 / draws) ** 0.5


def test_orders_are_equally_likely():
    """Half of all pairs are in reverse; with ties, which stay in order, it would be less."""
    count, trials, rng = 256, 2000, Random(0)
    orders = np.stack([random_order(count, rng) for _ in range(trials)]).astype(np.int16)
    reversed_pairs = sum((orders[:, [place]] > orders[:, place + 1 :]).sum() for place in range(count))
    share = reversed_pairs / (trials * count * (count - 1) / 2)
    assert abs(share - 0.5) < 0.0019 / 2  # of 8-bit numbers one pair in 256 would tie: 0.498
