"""Which spatial frequencies the tokens hold, as in Park and Kim 2022 (arXiv:2202.06709), Figure 2."""

import torch

_EPSILON = 1e-6


def diagonal_frequencies(side: int) -> torch.Tensor:
    """Return the frequencies of `log_amplitude`, `(side // 2 + 1,)`, float32, in [0, 1], in units of pi per token."""
    return torch.arange(side // 2 + 1) * (2.0 / side)


def log_amplitude(token_map: torch.Tensor) -> torch.Tensor:
    """Return the log amplitude on the diagonal of the 2-D Fourier transform, mean over channels.

    Args:
        token_map: `(batch_size, channels, rows, columns)`. Its diagonal has the frequencies of the shorter side; of the
            longer one, whose frequencies lie between them, amplitudes are interpolated.

    Returns:
        `(batch_size, side // 2 + 1)`, float32, at `diagonal_frequencies(side)` for the shorter side; frequency 0 first.
    """
    if token_map.shape[2] > token_map.shape[3]:
        token_map = token_map.transpose(2, 3)
    side, length = token_map.shape[2:]
    frequencies = torch.arange(side // 2 + 1, device=token_map.device)
    lower = frequencies * length // side
    amplitudes = torch.fft.fft2(token_map.float()).abs()[:, :, : side // 2 + 1]
    below, above = (amplitudes[:, :, frequencies, (lower + step) % length] for step in (0, 1))
    between = torch.lerp(below, above, (frequencies * length % side) / side)
    return (between + _EPSILON).log().mean(dim=1)


def relative_log_amplitude(token_map: torch.Tensor) -> torch.Tensor:
    """Return `log_amplitude` less its value at frequency 0: the higher, the more amplitude is in that frequency.

    Args:
        token_map: `(batch_size, channels, rows, columns)`.

    Returns:
        `(batch_size, side // 2 + 1)`, float32, side the shorter; the first is 0.
    """
    amplitude = log_amplitude(token_map)
    return amplitude - amplitude[:, :1]
