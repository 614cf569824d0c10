"""Check a data set before training: bad images, unusual images, copies, sizes."""

import hashlib
import os
import re
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import datasets
from PIL import Image, UnidentifiedImageError

from ..errors import printable
from ..models.pixel_range import PixelRange
from ..objective.keypoints import KeypointDetector
from .attach_density import map_images, measure_pixel_range
from .decoding import BadImageError, bad_density, decode_image, is_deep_image, open_image, own_channels, read_image
from .keypoint_share import TOLERATED, describe_share
from .stored_density import DensityDetector, density_label, stored_columns


@dataclass
class CheckArguments:
    """What the check leaves behind."""

    _argument_group_name = "check"

    output: str | None = field(default=None, metadata={"help": "Text file to write, with a line for each bad image."})


TINY = 32  # pixels: an image with a shorter side is tiny
STRIP = 8  # an image with a greater ratio of its sides is a strip
LISTED = 5  # names of each group in the report
_ORIENTATION = 0x0112
_PNG_START = b"\x89PNG"
_DEEP = "more than 8 bits"
_DEFAULT_DENSITIES = DensityDetector(KeypointDetector(), image_size=192)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_COLUMNS = {
    **dict.fromkeys(("name", "error", "reason", "traits"), datasets.Value("string")),
    **dict.fromkeys(("height", "width", "num_bytes"), datasets.Value("int64")),
    "digest": datasets.Value("binary"),
    "has_keypoints": datasets.Value("bool"),
}


@dataclass
class DatasetCheck:
    """What a check found. A line names an image, and says what is wrong with it."""

    num_images: dict[str, int] = field(default_factory=dict)  # split: number
    bad: dict[str, list[str]] = field(default_factory=dict)  # reason: lines on images that cannot be decoded
    unusual: dict[str, list[str]] = field(default_factory=dict)  # trait: names of images that can be used
    densities: Counter[str] = field(default_factory=Counter)  # "column of label": number of stored densities
    bad_densities: dict[str, list[str]] = field(default_factory=dict)  # column: lines on damaged or missing ones
    copies: list[str] = field(default_factory=list)  # names of images with the bytes of an earlier one, and that one
    shared: list[str] = field(default_factory=list)  # the same, where the earlier one is in another split
    pixel_range: PixelRange | None = None  # that scales images of more than 8 bits; None where there are none
    num_without_keypoints: int = 0  # images in which FAST finds nothing at 192 px
    short_sides: list[int] = field(default_factory=list)  # in pixels, of the images that can be decoded
    long_sides: list[int] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    not_read: Counter[str] = field(default_factory=Counter)  # suffix: files that `datasets` does not take for images
    seconds: float = 0.0
    outside: list[str] = field(default_factory=list)  # lines on files outside of the folder; no image is then checked
    links: list[str] = field(default_factory=list)  # lines on links that lead out of the folder

    @property
    def num_bad(self) -> int:
        """Number of images that cannot be decoded, and of stored densities that cannot be used."""
        return sum(map(len, [*self.bad.values(), *self.bad_densities.values()]))

    def bad_images(self) -> str:
        """Return a line for each bad image and density, or for each file outside of the folder."""
        groups = [*self.bad.values(), *self.bad_densities.values(), self.outside]
        return "".join(f"{line}\n" for lines in groups for line in lines)

    def report(self) -> str:
        """Return what was found, as a text of several lines."""
        if self.outside:
            lines = _groups({"would be read outside of the data set's folder": self.outside})
            return "\n".join([*lines, "No image was read. If you trust these entries, pass --trust_data_files true."])
        total = sum(self.num_images.values())
        splits = ", ".join(f"{split} {count:,}" for split, count in self.num_images.items())
        speed = total / max(self.seconds, 1e-9)
        lines = [f"{total:,} images ({splits}) in {self.seconds:.1f} s, {speed:,.0f} a second"]
        if self.bad:
            lines += [f"{sum(map(len, self.bad.values())):,} cannot be decoded:", *_groups(self.bad)]
        else:
            lines.append("All can be decoded.")
        if self.unusual:
            lines += ["Unusual, but they can be used:", *_groups(self.unusual)]
        lines += self._pixels()
        lines += _groups({"are read through links out of the folder": self.links})
        if self.densities or self.bad_densities:
            lines += ["Stored keypoint densities:", *(f"{count:8,}  {name}" for name, count in self.densities.items())]
            lines += _groups({f"{column}: damaged or missing": names for column, names in self.bad_densities.items()})
        lines += _groups({"have the same bytes as an image of another split": self.shared})
        lines += _groups({"have the same bytes as an earlier image": self.copies})
        if self.short_sides:
            lines.append(f"Short side: {_range(self.short_sides)} px. Long side: {_range(self.long_sides)} px.")
            kilobytes = [size / 1000 for size in self.num_bytes]
            lines.append(f"Files: {_range(kilobytes)} kB, {sum(kilobytes) / 1000:,.1f} MB in all.")
        if self.not_read:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in self.not_read.most_common(LISTED))
            lines.append(f"Files in the folder that are not read as images: {self.not_read.total():,} ({kinds}).")
        return "\n".join(lines)

    def _pixels(self) -> list[str]:
        lines, deep, total = [], len(self.unusual.get(_DEEP, ())), len(self.short_sides)
        if self.pixel_range is not None:
            lines.append(f"Training scales the {deep:,} of more than 8 bits: {self.pixel_range} becomes 0 to 255.")
        if self.num_without_keypoints > TOLERATED * total:
            lines.append(f"{describe_share(self.num_without_keypoints, total, 'images')}.")
        elif total:
            lines.append(f"FAST finds no keypoints in {self.num_without_keypoints:,} of them.")
        return lines


def check_dataset(images: datasets.DatasetDict, image_column: str, num_proc: int | None = None) -> DatasetCheck:
    """Decode every image as training does; use nothing from an earlier check.

    Args:
        images: splits, with the image column as `datasets.Image(decode=False)`.
    """
    check = DatasetCheck()
    start = time.perf_counter()
    seen: dict[bytes, tuple[str, str]] = {}
    train = images["train"] if "train" in images else next(iter(images.values()))
    num_channels = _channels_of_first(train, image_column)
    check.pixel_range = measure_pixel_range(train, image_column, num_proc, num_channels)
    for split, rows in images.items():
        check.num_images[split] = len(rows)
        settings = {"pixel_range": check.pixel_range, "num_channels": num_channels}
        once = {"load_from_cache_file": False, "keep_in_memory": True}
        what = f"Checking {split}"
        for row in map_images(rows, _inspect_batch, image_column, _COLUMNS, settings, num_proc, what, **once):
            _add(check, row, split, seen)
        for column in stored_columns(rows.column_names):
            _add_densities(check, rows.select_columns([image_column, column]), image_column, column)
    check.seconds = time.perf_counter() - start
    return check


def _channels_of_first(rows: datasets.Dataset, image_column: str) -> int:
    """Return the channels of the first image, which all should have; 3 if it is gray or cannot be decoded."""
    try:
        return own_channels(rows[0][image_column]) if len(rows) else 3
    except BadImageError:
        return 3


def _inspect_batch(
    rows: dict[str, list], indices: list[int], image_column: str, pixel_range: PixelRange | None, num_channels: int
) -> dict[str, list]:
    cv2.setNumThreads(1)
    numbered = zip(rows[image_column], indices, strict=True)
    found = [inspect_image(source, index, pixel_range, num_channels) for source, index in numbered]
    return {name: [row[name] for row in found] for name in _COLUMNS}


def inspect_image(
    source: dict[str, Any] | None, row: int, pixel_range: PixelRange | None = None, num_channels: int = 3
) -> dict[str, Any]:
    """Return the facts of one image, as `_COLUMNS` lists them; `error` and `reason` are None where it is good.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`.
        row: of the split, to name an image that has no name.
        pixel_range: by which it is scaled if it has more than 8 bits.
        num_channels: that it should have.
    """
    name = printable((source or {}).get("path") or f"the image in row {row}")
    facts: dict[str, Any] = {**dict.fromkeys(_COLUMNS), "name": name}
    try:
        data = read_image(source, name)
        image = decode_image({"bytes": data, "path": (source or {}).get("path")}, name, pixel_range, num_channels)
    except BadImageError as error:
        return facts | {"error": error.finding, "reason": error.reason}
    height, width = image.shape[:2]
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return facts | {
        "height": height,
        "width": width,
        "num_bytes": len(data),
        "traits": ",".join(_traits(data, height, width)),
        "digest": digest,
        "has_keypoints": bool(_DEFAULT_DENSITIES.density(image).any()),
    }


def _traits(data: bytes, height: int, width: int) -> list[str]:
    """Return what is unusual in an image: in its file, and in its shape."""
    short, long = sorted((height, width))
    traits = {}
    with suppress(UnidentifiedImageError), open_image(data) as image:
        traits = {
            "gray": image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF",
            "CMYK": image.mode == "CMYK",
            "palette": image.mode in ("P", "PA"),
            "transparency (dropped)": "A" in image.getbands() or "transparency" in image.info,
            "animated (its first frame is used)": image.format != "MPO" and _is_animated(image),
            "turned by EXIF": image.getexif().get(_ORIENTATION, 1) in range(2, 9),
        }
    traits |= {
        _DEEP: is_deep_image({"bytes": data}),
        "wrong checksums though it decodes": data.startswith(_PNG_START) and not _has_right_checksums(data),
        f"tiny (a side below {TINY} px)": short < TINY,
        f"strip (one side over {STRIP} times the other)": long > STRIP * short,
    }
    return [trait for trait, holds in traits.items() if holds]


def _has_right_checksums(png: bytes) -> bool:
    try:
        open_image(png).verify()
    except SyntaxError:
        return False
    return True


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is broken; only the first is used
        return True


def _add(check: DatasetCheck, row: dict[str, Any], split: str, seen: dict[bytes, tuple[str, str]]) -> None:
    if row["error"] is not None:
        kind = re.sub(r"\d+", "N", re.sub(r" \([^()]*\)$", "", row["reason"]))
        check.bad.setdefault(kind, []).append(row["error"])
        return
    for trait in filter(None, row["traits"].split(",")):
        check.unusual.setdefault(trait, []).append(row["name"])
    if row["digest"] in seen:
        earlier_split, earlier = seen[row["digest"]]
        (check.copies if earlier_split == split else check.shared).append(f"{row['name']} ({earlier})")
    seen.setdefault(row["digest"], (split, row["name"]))
    check.num_without_keypoints += not row["has_keypoints"]
    short, long = sorted((row["height"], row["width"]))
    check.short_sides.append(short)
    check.long_sides.append(long)
    check.num_bytes.append(row["num_bytes"])


def _add_densities(check: DatasetCheck, rows: datasets.Dataset, image_column: str, column: str) -> None:
    for number, row in enumerate(rows):
        if label := density_label(row[column]):
            check.densities[f"{column} of {label}"] += 1
        else:
            error = bad_density(row[image_column], f"the image in row {number}", "damaged or missing")
            check.bad_densities.setdefault(column, []).append(error.finding)


def _groups(groups: dict[str, list[str]]) -> list[str]:
    lines, found = [], [(title, names) for title, names in groups.items() if names]
    for title, names in sorted(found, key=lambda group: -len(group[1])):
        lines.append(f"{len(names):8,}  {title}")
        lines += [f"{'':12}{name}" for name in names[:LISTED]]
        if len(names) > LISTED:
            lines.append(f"{'':12}and {len(names) - LISTED:,} more")
    return lines


def _range(values: list[Any]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f} (median {statistics.median(values):,.0f})"


def files_not_read(folder: Path, images: datasets.DatasetDict, image_column: str) -> Counter[str]:
    """Count, by suffix, the files in a folder that `datasets` does not take for images; archives count as read."""
    paths = {source["path"] for rows in images.values() for source in rows[image_column] if source}
    read = {os.path.realpath(path) for path in paths if path}
    files = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    suffixes = (os.path.splitext(file)[1].lower() for file in files if os.path.realpath(file) not in read)
    return Counter(printable(suffix or "without a suffix") for suffix in suffixes if suffix not in _ARCHIVES)
