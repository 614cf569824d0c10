"""Project tokens to two dimensions: t-SNE and principal components of scikit-learn."""

from collections.abc import Sequence

import numpy as np

from ..errors import InputError

PERPLEXITY = 30.0  # about how many neighbors count; at most a third of the tokens


def tsne(tokens: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return t-SNE of tokens, started from their principal components (van der Maaten and Hinton 2008).

    Distances between clusters and their sizes mean nothing in it; only who is near whom does.

    Args:
        tokens: `(num_tokens, dimension)`, at least 4 tokens.
        seed: of the optimization.

    Returns:
        `(num_tokens, 2)`, float32.

    Raises:
        InputError: if scikit-learn is missing.
    """
    check_scikit_learn()
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(tokens) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(np.asarray(tokens, np.float32))


def pca(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two principal components of tokens.

    Args:
        tokens: `(num_tokens, dimension)`, at least 2 of each.

    Returns:
        `(num_tokens, 2)`, float64; and `(2,)`, the shares of the variance that they explain.

    Raises:
        InputError: if scikit-learn is missing.
    """
    check_scikit_learn()
    from sklearn.decomposition import PCA

    fitted = PCA(n_components=2, svd_solver="full")
    return fitted.fit_transform(np.asarray(tokens, np.float64)), fitted.explained_variance_ratio_


def pca_together(groups: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return principal components of several groups of tokens, fitted to all of them: they share one plane.

    Args:
        groups: `(num_tokens, dimension)` each.

    Returns:
        `(num_tokens, 2)` for each group, and the `(2,)` shares of the variance.
    """
    plane, explained = pca(np.concatenate(groups))
    return np.split(plane, np.cumsum([len(group) for group in groups])[:-1]), explained


def relative_spread(tokens: np.ndarray) -> float:
    """Return how much tokens differ at any scale: root mean square distance from their centroid over that from 0.

    Args:
        tokens: `(num_tokens, dimension)`.

    Returns:
        In [0, 1]: 0 where all are equal, 1 where they are centered; NaN where all are 0.
    """
    tokens = np.asarray(tokens, np.float64)
    length = np.sqrt(np.square(tokens).sum(axis=1).mean())
    return float(np.sqrt(tokens.var(axis=0).sum()) / length) if length else float("nan")


def neighbor_agreement(tokens: np.ndarray, classes: Sequence[str], images: Sequence[int]) -> tuple[float, float]:
    """Return how often a token's nearest token of another image (cosine) is of its class, and how often by chance.

    Args:
        tokens: `(num_tokens, dimension)`.
        classes, images: of each token.

    Returns:
        Two shares in [0, 1]; NaN where there is one image.
    """
    names, owners = np.asarray(classes), np.asarray(images)
    if len(np.unique(owners)) < 2:
        return float("nan"), float("nan")
    directions = np.asarray(tokens, np.float32)
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True).clip(min=1e-12)
    others = owners[:, None] != owners
    nearest = np.where(others, directions @ directions.T, -np.inf).argmax(axis=1)
    is_same = names[:, None] == names
    return float((names[nearest] == names).mean()), float((is_same & others).sum() / others.sum())


def check_scikit_learn() -> None:
    """Raise InputError where scikit-learn is missing, before hours have been spent on other analyses."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise InputError(
            "t-SNE and PCA need scikit-learn, which is not installed: pip install 'modeling-kamim[analysis]', or leave "
            "tsne and pca out of --analyses"
        ) from error
