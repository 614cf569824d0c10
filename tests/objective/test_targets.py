"""Targets against NumPy's Fourier transform and plain loops."""

import math

import numpy as np
import pytest
import torch

from modeling_kamim.objective.targets import LOW_PASS_CUTOFF, TARGETS, low_pass


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 1, 15, 24), (2, 3, 64, 64)])
def test_the_low_pass_keeps_the_frequencies_within_a_radius(shape):
    pixels = images(*shape)
    spectrum = np.fft.fft2(pixels.numpy().astype(np.float64))
    for row in range(shape[2]):
        for column in range(shape[3]):
            down = min(row, shape[2] - row) / shape[2]
            across = min(column, shape[3] - column) / shape[3]
            if math.hypot(down, across) > LOW_PASS_CUTOFF / 2:
                spectrum[..., row, column] = 0
    np.testing.assert_allclose(low_pass(pixels).numpy(), np.fft.ifft2(spectrum).real, atol=1e-5)


def test_the_low_pass_is_pixmims_at_224_px():
    """A wave of 40 periods across 224 px stays, one of 41 is gone; filtering twice changes nothing more."""
    places = torch.arange(224) / 224
    for periods, share in ((40, 1.0), (41, 0.0)):
        wave = torch.cos(2 * math.pi * periods * places).expand(1, 1, 224, 224)
        torch.testing.assert_close(low_pass(wave), share * wave, atol=1e-4, rtol=0)
    pixels = images(1, 3, 224, 224)
    torch.testing.assert_close(low_pass(low_pass(pixels)), low_pass(pixels), atol=1e-5, rtol=0)
    flat = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(low_pass(flat), flat)


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_is_filtered_then_normalized_by_patch(name):
    pixels = images(2, 3, 16, 24)
    target, statistics = TARGETS[name](pixels, 8)
    expected = low_pass(pixels) if "low_pass" in name else pixels
    assert (statistics is None) == ("normalized" not in name)
    if statistics is not None:
        for row in range(2):
            for column in range(3):
                patch = expected[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                patch = (patch - patch.mean((1, 2, 3), keepdim=True)) / (
                    patch.var((1, 2, 3), keepdim=True) + 1e-6
                ).sqrt()
                found = target[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                torch.testing.assert_close(found, patch, atol=1e-5, rtol=1e-5)
        target = target * statistics[1] + statistics[0]
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)
