"""Which spatial frequencies the tokens hold, as in Park and Kim 2022 (arXiv:2202.06709), Figure 2."""

import torch

_EPSILON = 1e-6


def diagonal_frequencies(side: int) -> torch.Tensor:
    """Return the frequencies of `log_amplitude`, `(side // 2 + 1,)`, float32, in [0, 1], in units of pi per token."""
    return torch.arange(side // 2 + 1) * (2.0 / side)


def log_amplitude(token_map: torch.Tensor) -> torch.Tensor:
    """Return the log amplitude on the diagonal of the 2-D Fourier transform, mean over channels.

    Args:
        token_map: `(batch_size, channels, side, side)`.

    Returns:
        `(batch_size, side // 2 + 1)`, float32, at `diagonal_frequencies(side)`; frequency 0 first.
    """
    amplitudes = torch.fft.fft2(token_map.float()).abs().diagonal(dim1=2, dim2=3)
    return (amplitudes[..., : token_map.shape[-1] // 2 + 1] + _EPSILON).log().mean(dim=1)


def relative_log_amplitude(token_map: torch.Tensor) -> torch.Tensor:
    """Return `log_amplitude` less its value at frequency 0: the higher, the more amplitude is in that frequency.

    Args:
        token_map: `(batch_size, channels, side, side)`.

    Returns:
        `(batch_size, side // 2 + 1)`, float32; the first is 0.
    """
    amplitude = log_amplitude(token_map)
    return amplitude - amplitude[:, :1]
