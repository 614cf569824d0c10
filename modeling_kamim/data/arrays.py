"""Pixels of NumPy files (.npy) and of TIFF files of any number of channels."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import tifffile

NPY = ".npy"
_NPY_START = b"\x93NUMPY"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_TIFF = 2**31  # bytes of its pixels: a small file can declare any number
_NUMBERS = re.compile(r"(u?int|float)\d+")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_npy(start: bytes) -> bool:
    """Return whether a file that begins so is a NumPy file."""
    return start.startswith(_NPY_START)


def is_tiff(start: bytes) -> bool:
    """Return whether a file that begins so is a TIFF."""
    return start.startswith(_TIFF_STARTS)


def opened(data: bytes | Path) -> BinaryIO:
    """Return encoded bytes, or a file, opened for reading."""
    return data.open("rb") if isinstance(data, Path) else io.BytesIO(data)


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of the array of an opened NumPy file, and leave the file at its numbers.

    Raises:
        ValueError: unless it holds 2 or 3 axes of integers or floats.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"NumPy files of version {version} hold no images")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.kind not in "uif" or len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an image is an array of 2 or 3 axes of integers or floats, and this is {dtype} {shape}")
    return shape, dtype


def read_npy(data: bytes, num_channels: int) -> np.ndarray:
    """Return the pixels of a NumPy file.

    Args:
        data: the file; a 2-D array is one channel, of a 3-D array the first or the last axis is that of the channels
            (see `channels_last`).
        num_channels: that are expected.

    Returns:
        `(height, width, channels)`, of its own type, in the byte order of this machine.

    Raises:
        ValueError: if it is no image, or not as long as its header says.
    """
    file = io.BytesIO(data)
    shape, dtype = npy_header(file)
    held, needed = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
    if held != needed:
        raise ValueError(f"its header declares {needed} bytes of numbers, and there are {held}")
    pixels = np.load(io.BytesIO(data), allow_pickle=False)
    return channels_last(pixels.astype(dtype.newbyteorder("="), copy=False), num_channels)


def channels_last(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    """Return `(height, width, channels)` of an array whose first or last axis is that of the channels.

    It is the one as long as `num_channels`; where both or none are, the shorter one.

    Raises:
        ValueError: if that does not tell them apart.
    """
    if pixels.ndim == 2:
        return pixels[..., None]
    first, last = pixels.shape[0], pixels.shape[2]
    if first == last:
        raise ValueError(f"which axis of {pixels.shape} is that of the channels cannot be told")
    is_first = first == num_channels if num_channels in (first, last) else first < last
    return np.moveaxis(pixels, 0, 2) if is_first else pixels


def encode_npy(pixels: np.ndarray) -> bytes:
    """Return the NumPy file of an array."""
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


def tiff_dtype(data: bytes | Path) -> np.dtype:
    """Return the type of the pixels of a TIFF, by its header."""
    with opened(data) as file, tifffile.TiffFile(file) as tiff:
        return tiff.series[0].dtype


def read_tiff(data: bytes) -> np.ndarray:
    """Return the pixels of the first image of a TIFF: samples of a pixel, planes or pages of equal size are channels.

    Returns:
        `(height, width, channels)`, of its own type, in the byte order of this machine.

    Raises:
        ValueError: if it has more axes, other numbers than integers and floats, or more than 2 GB of pixels.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        series = tiff.series[0]
        others = [axis for axis, size in enumerate(series.shape) if series.axes[axis] not in "YX" and size > 1]
        if len(others) > 1 or not {"Y", "X"} <= set(series.axes) or series.dtype.kind not in "uif":
            raise ValueError(f"a TIFF of {series.dtype} {series.shape} with the axes {series.axes} is no image")
        if series.size * series.dtype.itemsize > _MAX_TIFF:
            raise ValueError(f"a TIFF of {series.shape} pixels is too large for an image")
        pixels, height, width = series.asarray(squeeze=False), series.axes.index("Y"), series.axes.index("X")
    order = [height, width, *(axis for axis in range(pixels.ndim) if axis not in (height, width))]
    return pixels.transpose(order).reshape(pixels.shape[height], pixels.shape[width], -1)


def array_dtype(feature: Any) -> str | None:
    """Return the type of the numbers of a column of arrays (`Array2D`, `Array3D`, nested lists); None for any other."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return feature.dtype
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    is_image = depth in (2, 3) and isinstance(feature, datasets.Value) and _NUMBERS.fullmatch(feature.dtype)
    return feature.dtype if is_image else None


def encode_arrays(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the data set with the arrays of a column as NumPy files, `datasets.Image(decode=False)`; cached."""
    features = dataset.features.copy()
    dtype = array_dtype(features[column])
    features[column] = datasets.Image(decode=False)
    encoded = dataset.with_format("numpy").map(
        _encode_batch,
        batched=True,
        batch_size=16,
        input_columns=[column],
        fn_kwargs={"column": column, "dtype": dtype},
        features=features,
        desc="Encoding arrays",
    )
    return encoded.with_format(None)


def _encode_batch(arrays: Sequence[Any], column: str, dtype: str) -> dict[str, list]:
    return {column: [encoded_array(array, dtype) for array in arrays]}


def encoded_array(value: Any, dtype: str) -> dict[str, Any] | None:
    """Return an array as an image of `datasets.Image(decode=False)`; a ragged one without bytes: a bad image."""
    try:
        return {"bytes": None if value is None else encode_npy(np.asarray(value, dtype)), "path": None}
    except ValueError:
        return {"bytes": b"", "path": None}
