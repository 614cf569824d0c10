"""The measures of `modeling_kamim.analysis` against closed forms and other implementations."""

import itertools
import math

import numpy as np
import pytest
import torch

from modeling_kamim import KeypointDetector, cell_density, keypoint_weights
from modeling_kamim.analysis.attention import (
    attention_distance,
    attention_entropy,
    collapse,
    normalized_mutual_information,
    patch_attention,
    token_distances,
    uniform_attention_distance,
)
from modeling_kamim.analysis.fourier import diagonal_frequencies, log_amplitude, relative_log_amplitude
from modeling_kamim.analysis.keypoint_view import amount, keypoint_positions, weight_grid
from modeling_kamim.analysis.loss_share import loss_shares
from modeling_kamim.analysis.moments import RunningMoments
from modeling_kamim.analysis.similarity import GramAccumulator, MinibatchCka, effective_rank, linear_cka, unbiased_hsic
from modeling_kamim.analysis.tokens import neighbor_agreement, pca, pca_together, relative_spread, tsne

SIDE, TOKEN_SIZE = 5, 16
NUM_TOKENS = SIDE**2


def heads(*maps):
    """(1, heads, tokens, tokens)."""
    return torch.stack(maps)[None]


@pytest.fixture
def known():
    """Attention of five heads: identity, uniform, to the right neighbor (cyclic), all to one token, all alike."""
    index = torch.arange(NUM_TOKENS)
    right = index // SIDE * SIDE + (index + 1) % SIDE
    one = torch.zeros(NUM_TOKENS, NUM_TOKENS)
    one[:, 0] = 1
    alike = torch.rand(NUM_TOKENS).softmax(0).expand(NUM_TOKENS, -1)
    identity = torch.eye(NUM_TOKENS)
    return heads(identity, torch.full((NUM_TOKENS, NUM_TOKENS), 1 / NUM_TOKENS), identity[right], one, alike)


def closed_form_of_uniform_distance(side, token_size):
    total = sum(
        (side - abs(dx)) * (side - abs(dy)) * math.hypot(dx, dy)
        for dx, dy in itertools.product(range(1 - side, side), repeat=2)
    )
    return token_size * total / side**4


def test_attention_distance_of_known_attention(known):
    identity, uniform, right, one, _ = attention_distance(known, SIDE, TOKEN_SIZE)[0].tolist()
    assert identity == 0
    assert uniform == pytest.approx(closed_form_of_uniform_distance(SIDE, TOKEN_SIZE), rel=1e-6)
    # side - 1 hops of 1 and one of side - 1, in each row
    assert right == pytest.approx(TOKEN_SIZE * 2 * (SIDE - 1) / SIDE, rel=1e-6)
    corner = np.mean([math.hypot(x, y) for x in range(SIDE) for y in range(SIDE)])
    assert one == pytest.approx(TOKEN_SIZE * corner, rel=1e-6)


@pytest.mark.parametrize(("side", "token_size"), [(1, 16), (2, 16), (12, 16), (14, 16), (6, 32)])
def test_uniform_attention_distance_in_closed_form(side, token_size):
    expected = closed_form_of_uniform_distance(side, token_size)
    assert uniform_attention_distance(side, token_size) == pytest.approx(expected, rel=1e-6)


def test_the_papers_collapsed_distances_are_those_of_uniform_attention():
    """Figure 6 has 99.57 to 99.97 px at 192 px with 16 px patches."""
    assert uniform_attention_distance(12, 16) == pytest.approx(99.8, abs=0.3)


def test_distances_scale_with_the_token():
    torch.testing.assert_close(token_distances(4, 32.0), 2 * token_distances(4, 16.0))


def test_attention_over_another_grid_is_refused():
    with pytest.raises(ValueError, match="a grid of 2"):
        attention_distance(torch.ones(1, 1, 6, 6) / 6, 2, 16)


def test_attention_distances_over_a_rectangle():
    attention = torch.rand(2, 3, 15, 15).softmax(-1)
    points = np.array([(row, column) for row in range(3) for column in range(5)]) * 8.0
    between = np.linalg.norm(points[:, None] - points[None], axis=2)
    expected = (attention.numpy() * between).sum(-1).mean(-1)
    np.testing.assert_allclose(attention_distance(attention, (3, 5), 8.0), expected, rtol=1e-5)
    assert uniform_attention_distance((3, 5), 8.0) == pytest.approx(between.mean(), rel=1e-6)


def test_normalized_mutual_information_of_known_attention(known):
    identity, uniform, right, one, alike = normalized_mutual_information(known)[0].tolist()
    assert identity == pytest.approx(1, abs=1e-6)
    assert right == pytest.approx(1, abs=1e-6)
    assert [uniform, one, alike] == pytest.approx([0, 0, 0], abs=1e-6)
    assert normalized_mutual_information(torch.ones(1, 1, 1, 1)).item() == 0


def test_normalized_mutual_information_agrees_with_scikit_learn():
    """Counts as attention: queries are equally frequent, so that labels can be drawn from them."""
    counts = np.array([[6, 2, 0, 0], [1, 5, 1, 1], [0, 0, 4, 4], [2, 2, 2, 2]])
    queries, keys = np.nonzero(counts)
    repeats = counts[queries, keys]
    from sklearn.metrics import normalized_mutual_info_score

    labels = np.repeat(queries, repeats), np.repeat(keys, repeats)
    expected = normalized_mutual_info_score(*labels, average_method="geometric")
    attention = torch.tensor(counts / counts.sum(1, keepdims=True), dtype=torch.float32)[None, None]
    assert normalized_mutual_information(attention).item() == pytest.approx(expected, abs=1e-6)


def test_prefix_tokens_are_left_out_and_their_share_is_told():
    attention = torch.rand(2, 3, 6, 6).softmax(-1)
    patches, share = patch_attention(attention, 2)
    torch.testing.assert_close(patches.sum(-1), torch.ones(2, 3, 4))
    torch.testing.assert_close(share, attention[:, :, 2:, :2].sum(-1).mean(-1))
    torch.testing.assert_close(patches[0, 0, 1], attention[0, 0, 3, 2:] / attention[0, 0, 3, 2:].sum())


def test_entropy_of_known_attention(known):
    identity, uniform, right, one, alike = attention_entropy(known)[0].tolist()
    assert [identity, uniform, right, one] == pytest.approx([0, 1, 0, 0], abs=1e-6)
    row = known[0, 4, 0]
    assert alike == pytest.approx(-(row * row.log()).sum().item() / math.log(NUM_TOKENS), rel=1e-5)
    assert attention_entropy(torch.ones(1, 1, 1, 1)).item() == 1


@pytest.mark.parametrize(
    ("nmi", "entropy", "word"),
    [(0.2, 0.99, "selective"), (0.004, 0.99, "uniform"), (0.004, 0.8, "query-independent"), (0.01, 0.99, "selective")],
)
def test_collapse(nmi, entropy, word):
    assert collapse(nmi, entropy) == word


@pytest.mark.parametrize(("side", "order"), [(8, 1), (8, 3), (7, 2)])
def test_fourier_of_a_known_sinusoid(side, order):
    """1 + a cos(2 pi k (x + y) / side) has amplitude side^2 at frequency 0 and a side^2 / 2 at k, 0 elsewhere."""
    x = torch.arange(side, dtype=torch.float64)
    wave = 1 + 0.5 * torch.cos(2 * torch.pi * order * (x[:, None] + x) / side)
    relative = relative_log_amplitude(wave.expand(2, 3, side, side))
    assert relative.shape == (2, side // 2 + 1)
    torch.testing.assert_close(relative[:, 0], torch.zeros(2))
    torch.testing.assert_close(relative[:, order], torch.full((2,), math.log(0.25)), rtol=1e-4, atol=1e-4)
    others = [k for k in range(1, side // 2 + 1) if k != order]
    assert (relative[:, others] < -8).all()
    assert diagonal_frequencies(side)[order].item() == pytest.approx(2 * order / side)


@pytest.mark.parametrize("shape", [(4, 8), (6, 9), (9, 6), (5, 7)])
def test_fourier_of_a_rectangle_is_interpolated_between_the_frequencies_of_its_longer_side(shape):
    maps = torch.randn(2, 3, *shape)
    amplitudes = np.abs(np.fft.fft2(maps.numpy()))
    amplitudes = amplitudes if shape[0] < shape[1] else amplitudes.swapaxes(2, 3)
    side, length = sorted(shape)
    diagonal = np.array(
        [
            [np.interp(k * length / side, np.arange(length), channel[k]) for k in range(side // 2 + 1)]
            for channel in amplitudes.reshape(-1, side, length)
        ]
    ).reshape(2, 3, -1)
    np.testing.assert_allclose(log_amplitude(maps), np.log(diagonal + 1e-6).mean(axis=1), rtol=1e-3, atol=1e-4)


def test_fourier_agrees_with_numpy_and_reaches_the_highest_frequency():
    maps = torch.randn(2, 4, 6, 6)
    amplitudes = np.abs(np.fft.fft2(maps.numpy()))
    expected = np.log(amplitudes[..., range(4), range(4)] + 1e-6).mean(axis=1)
    np.testing.assert_allclose(log_amplitude(maps), expected, rtol=1e-4)
    assert diagonal_frequencies(6).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_pca_is_scikit_learns_and_groups_share_a_plane():
    from sklearn.decomposition import PCA

    tokens = np.random.default_rng(0).normal(size=(40, 8))
    points, explained = pca(tokens)
    reference = PCA(2).fit(tokens)
    np.testing.assert_allclose(np.abs(points), np.abs(reference.transform(tokens)), atol=1e-6)
    np.testing.assert_allclose(explained, reference.explained_variance_ratio_)
    parts, _ = pca_together([tokens[:10], tokens[10:]])
    assert [part.shape for part in parts] == [(10, 2), (30, 2)]
    np.testing.assert_allclose(np.concatenate(parts), points)


def test_tsne_is_scikit_learns():
    from sklearn.manifold import TSNE

    tokens = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    expected = TSNE(perplexity=4, init="pca", random_state=3).fit_transform(tokens)
    np.testing.assert_allclose(tsne(tokens, seed=3), expected, rtol=1e-5)


def test_relative_spread():
    tokens = np.random.default_rng(0).normal(size=(50, 4))
    assert relative_spread(np.ones((5, 3))) == 0
    assert relative_spread(tokens - tokens.mean(0)) == pytest.approx(1)
    assert relative_spread(7 * tokens) == pytest.approx(relative_spread(tokens))


def test_neighbors_of_other_images():
    """Two images of a class in one direction, two of the other class across: every nearest token is of its class."""
    tokens = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    agreement, chance = neighbor_agreement(tokens, ["a", "a", "b", "b"], [0, 1, 2, 3])
    assert agreement == 1
    assert chance == pytest.approx(1 / 3)


def test_cka_of_equal_turned_and_scaled_features_is_one():
    features = torch.randn(60, 7, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    other = torch.randn(60, 4, dtype=torch.float64)
    for same in (features, features @ rotation, 3.5 * features, features + 2):
        assert linear_cka(features, same) == pytest.approx(1)
        cka = MinibatchCka()
        cka.update([features, same, other])
        result = cka.result()
        assert result[0, 1] == pytest.approx(1)
        assert result[0, 2] == pytest.approx(result[1, 2])
        np.testing.assert_allclose(result, result.T)
    assert linear_cka(features @ rotation, 2 * other) == pytest.approx(linear_cka(features, other))


def test_unbiased_cka_of_unrelated_features_is_near_zero_where_the_biased_one_is_not():
    first, second = torch.randn(50, 200), torch.randn(50, 200)
    cka = MinibatchCka()
    cka.update([first, second])
    assert abs(cka.result()[0, 1]) < 0.1
    assert linear_cka(first, second) > 0.5


def test_unbiased_hsic_agrees_with_its_definition():
    """Mean over quadruples of distinct examples of k_ij (l_ij + l_qr - 2 l_iq), by enumeration (Song et al. 2012)."""
    grams = torch.stack([x @ x.T for x in torch.randn(2, 6, 3, dtype=torch.float64)])
    first, second = grams
    terms = [
        first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q])
        for i, j, q, r in itertools.permutations(range(6), 4)
    ]
    assert unbiased_hsic(grams)[0, 1].item() == pytest.approx(torch.stack(terms).mean().item())
    with pytest.raises(ValueError, match="at least 4"):
        unbiased_hsic(torch.ones(2, 3, 3))


@pytest.mark.parametrize("batches", [[40], [7, 9, 1, 23], [20, 20], [1] * 40])
def test_streamed_cka_does_not_depend_on_the_batches(batches):
    features = [torch.randn(40, width) for width in (5, 3, 8)]
    whole = MinibatchCka(chunk_size=16)
    whole.update(features)
    streamed = MinibatchCka(chunk_size=16)
    for parts in zip(*(part.split(batches) for part in features), strict=True):
        streamed.update(parts)
    np.testing.assert_allclose(streamed.result(), whole.result())


def test_effective_rank_of_known_spectra():
    assert effective_rank(np.ones(5)) == pytest.approx(5)
    assert effective_rank(np.array([3.0, 0.0, 0.0])) == pytest.approx(1)
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(8 * shares) == pytest.approx(math.exp(1.5 * math.log(2)))


@pytest.mark.parametrize("centered", [False, True])
def test_streamed_singular_values(centered):
    rows = torch.randn(90, 6, dtype=torch.float64) + 1
    gram = GramAccumulator()
    for batch in rows.split([30, 1, 59]):
        gram.update(batch)
    expected = torch.linalg.svdvals(rows - rows.mean(0) if centered else rows)
    np.testing.assert_allclose(gram.singular_values(centered), expected, rtol=1e-8)
    assert gram.num_rows == 90


def test_running_moments():
    values = torch.randn(23, 4, 2, dtype=torch.float64) + 100
    moments = RunningMoments()
    for batch in values.split([5, 1, 17]):
        moments.update(batch)
    np.testing.assert_allclose(moments.mean, values.mean(0))
    np.testing.assert_allclose(moments.std, values.std(0))
    single = RunningMoments()
    single.update(values[:1])
    assert np.isnan(single.std).all()


@pytest.mark.parametrize("num_cells", [10, 37, 100])
def test_loss_shares_sum_to_one_and_are_equal_for_equal_weights(num_cells):
    rng = np.random.default_rng(0)
    loss = rng.random(num_cells)
    shares = loss_shares(loss, rng.random(num_cells))
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(loss_shares(loss, np.full(num_cells, 3.0)), 0.1)


def test_loss_shares_follow_the_weights():
    weights = np.array([4.0, 1.0, 3.0, 2.0])
    np.testing.assert_allclose(loss_shares(np.ones(4), weights, 4), 0.25)
    np.testing.assert_allclose(loss_shares(weights, weights, 4), np.array([1, 2, 3, 4]) / 10)
    np.testing.assert_allclose(loss_shares(weights, weights, 2), [0.3, 0.7])
    np.testing.assert_allclose(loss_shares(np.array([0, 2, 1, 1]), np.array([1, 1, 2, 2]), 4), 0.25)


def test_weight_grid_is_that_of_training(astronaut):
    image = np.ascontiguousarray(astronaut[:96, :96])
    detector = KeypointDetector("fast")
    grid = weight_grid(detector, image, [0.25, 1.0], [8, 32, 64])
    assert set(grid) == {(8, 0.25), (8, 1.0), (32, 0.25), (32, 1.0)}
    expected = keypoint_weights(torch.from_numpy(cell_density(detector(image), 8)), 0.25)
    np.testing.assert_array_equal(grid[8, 0.25], expected)
    assert keypoint_positions(detector, image).shape == (len(detector.detect(image)), 2)
    assert keypoint_positions(detector, np.zeros((32, 32, 3), np.uint8)).shape == (0, 2)


def test_the_amount_of_a_source_is_its_keypoints_or_the_mean_of_its_map(photographs):
    for image in photographs[:2]:
        assert amount(KeypointDetector(), image) == len(KeypointDetector().detect(image))
        assert amount(KeypointDetector("sobel"), image) == pytest.approx(KeypointDetector("sobel")(image).mean())
