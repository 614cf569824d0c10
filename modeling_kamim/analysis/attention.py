"""How far and how selectively attention looks, as in Park et al. 2023 (arXiv:2305.00729), section 2. Pure.

Both measures have known values, which are what a figure of them must be read against:

| attention | distance | normalized mutual information | entropy |
|---|---|---|---|
| every token attends to itself | 0 | 1 | 0 |
| every token attends to a token of its own | mean of those distances | 1 | 0 |
| uniform | `uniform_attention_distance` | 0 | 1 |
| every token attends to the same tokens | anything | 0 | anything |

So a long distance alone does not mean that attention is global: uniform attention has a long one too, and looks at
nothing in particular.
"""

import math
from collections.abc import Sequence

import torch

from ..limits import height_and_width

COLLAPSED_NMI = 0.01  # below it the maps hardly depend on the query
UNIFORM_ENTROPY = 0.98  # from it on they hardly depend on the key either
_TINY = torch.finfo(torch.float32).tiny


def patch_attention(attention: torch.Tensor, num_prefix_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention among the patch tokens alone, as distributions, and the share of CLS and registers.

    Args:
        attention: `(batch_size, heads, tokens, tokens)`, rows (queries) sum to 1.
        num_prefix_tokens: CLS and registers, which come first.

    Returns:
        `(batch_size, heads, patches, patches)`, float32, rows sum to 1; and `(batch_size, heads)`, in [0, 1], the mean
        share of a patch's attention on the prefix tokens.
    """
    patches = attention[..., num_prefix_tokens:, num_prefix_tokens:].float()
    kept = patches.sum(dim=-1, keepdim=True)
    return patches / kept.clamp(min=_TINY), 1 - kept.squeeze(-1).mean(dim=-1)


def token_distances(grid: int | Sequence[int], token_size: float) -> torch.Tensor:
    """Return the distances between the centers of the tokens of a grid.

    Args:
        grid: tokens on each side, or their rows and columns.
        token_size: side of a token in pixels.

    Returns:
        `(tokens, tokens)`, float32, pixels; rows before columns.
    """
    axes = [torch.arange(count, dtype=torch.float32) * token_size for count in height_and_width(grid)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(attention: torch.Tensor, grid: int | Sequence[int], token_size: float) -> torch.Tensor:
    """Return the mean distance from query to key under the attention (Dosovitskiy et al. 2021, arXiv:2010.11929, D.7).

    `mean over q of sum over k of A(q, k) * |position(q) - position(k)|`.

    Args:
        attention: `(batch_size, heads, tokens, tokens)` over a grid or window, rows sum to 1.
        grid, token_size: of `token_distances`.

    Returns:
        `(batch_size, heads)`, float32, pixels.

    Raises:
        ValueError: if the tokens are not those of the grid.
    """
    distances = token_distances(grid, token_size).to(attention.device)
    if attention.shape[-2:] != distances.shape:
        raise ValueError(f"attention is {tuple(attention.shape)}; its tokens must form a grid of {grid}")
    return (attention.float() * distances).sum(dim=-1).mean(dim=-1)


def uniform_attention_distance(grid: int | Sequence[int], token_size: float) -> float:
    """Return the distance, in pixels, of attention that weights all tokens of a grid equally.

    `token_size / tokens^2 * sum over dx, dy of (columns - |dx|) (rows - |dy|) sqrt(dx^2 + dy^2)`; about 0.52 of the
    side of a large square.
    """
    return float(token_distances(grid, token_size).double().mean())


def normalized_mutual_information(attention: torch.Tensor) -> torch.Tensor:
    """Return how much a key tells about its query: `I(Q; K) / sqrt(H(Q) H(K))` (Park et al. 2023, section 2.2).

    Queries are taken as equally likely, `p(q, k) = A(q, k) / N`.

    Args:
        attention: `(batch_size, heads, queries, keys)`, rows sum to 1.

    Returns:
        `(batch_size, heads)`, float32, in [0, 1]: 0 where all queries look at the same (uniform attention is one such
        case), 1 where each looks at a token of its own. 0 too where there is one token, or all look at one.
    """
    attention = attention.float()
    keys = attention.mean(dim=-2)  # p(k)
    terms = torch.xlogy(attention, attention) - torch.xlogy(attention, keys.unsqueeze(-2))
    information = terms.sum(dim=-1).mean(dim=-1).clamp(min=0.0)
    key_entropy = -torch.xlogy(keys, keys).sum(dim=-1)
    scale = (key_entropy.clamp(min=0.0) * math.log(attention.shape[-2])).sqrt()
    return torch.where(scale > 1e-6, information / scale.clamp(min=1e-6), 0.0).clamp(max=1.0)


def attention_entropy(attention: torch.Tensor) -> torch.Tensor:
    """Return how evenly attention is spread: mean entropy of a query's attention, over that of uniform attention.

    Args:
        attention: `(batch_size, heads, queries, keys)`, rows sum to 1.

    Returns:
        `(batch_size, heads)`, float32, in [0, 1]: 0 where every query looks at one key, 1 for uniform attention.
    """
    attention = attention.float()
    entropy = -torch.xlogy(attention, attention).sum(dim=-1).mean(dim=-1)
    return entropy / math.log(attention.shape[-1]) if attention.shape[-1] > 1 else torch.ones_like(entropy)


def collapse(nmi: float, entropy: float) -> str:
    """Return a word for the attention of a layer, from its means over heads and images.

    Args:
        nmi: below 0.01 the attention has collapsed: its maps hardly depend on the query.
        entropy: of a collapsed layer; from 0.98 on it is close to uniform.

    Returns:
        "selective", or of a collapsed layer "uniform" or "query-independent".
    """
    if nmi >= COLLAPSED_NMI:
        return "selective"
    return "uniform" if entropy >= UNIFORM_ENTROPY else "query-independent"
