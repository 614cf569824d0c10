"""Check a data set before training: bad images, unusual images, copies, pixels, sizes."""

import os
import re
import statistics
import time
from collections import Counter
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import datasets

from ..errors import printable
from ..models.pixel_range import PixelRange
from .attach_density import map_images, measure_pixel_range
from .decoding import BadImageError, bad_density, own_channels
from .inspection import DEEP, FACTS, inspect_image
from .keypoint_share import TOLERATED, describe_share
from .near_copies import near_copies
from .stored_density import density_label, stored_columns


@dataclass
class CheckArguments:
    """What the check leaves behind."""

    _argument_group_name = "check"

    output: str | None = field(default=None, metadata={"help": "Text file to write, with a line for each bad image."})
    json: str | None = field(default=None, metadata={"help": "JSON file to write, with all that is reported."})


LISTED = 5  # names of each group in the report
_CHANNELS = {1: "gray", 2: "gray with transparency", 3: "RGB"}
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


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
    near_copies: list[str] = field(default_factory=list)  # names of images that look like an earlier one, and that one
    near_shared: list[str] = field(default_factory=list)  # the same, where the earlier one is in another split
    pixels: Counter[str] = field(default_factory=Counter)  # "8-bit RGB": images that are stored so
    pixel_range: PixelRange | None = None  # that scales images of more than 8 bits; None where there are none
    num_channels: int = 3  # that training takes
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
        lines += _groups({"look like an image of another split (encoded or resized again)": self.near_shared})
        lines += _groups({"look like an earlier image (encoded or resized again)": self.near_copies})
        if self.short_sides:
            lines.append(f"Short side: {_range(self.short_sides)} px. Long side: {_range(self.long_sides)} px.")
            kilobytes = [size / 1000 for size in self.num_bytes]
            lines.append(f"Files: {_range(kilobytes)} kB, {sum(kilobytes) / 1000:,.1f} MB in all.")
        if self.not_read:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in self.not_read.most_common(LISTED))
            lines.append(f"Files in the folder that are not read as images: {self.not_read.total():,} ({kinds}).")
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """Return everything for a JSON file; of sizes, the least, the median and the largest."""
        facts = {item.name: getattr(self, item.name) for item in fields(self)}
        facts |= {name: _summary(facts[name]) for name in ("short_sides", "long_sides", "num_bytes")}
        return {**facts, "pixel_range": self.pixel_range and astuple(self.pixel_range)}

    def _pixels(self) -> list[str]:
        deep, total = len(self.unusual.get(DEEP, ())), len(self.short_sides)
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.pixels.most_common())
        lines = [f"Pixels: {kinds}."] if kinds else []
        if self.num_channels != 3:
            lines.append(f"Training takes --num_channels {self.num_channels}.")
        if self.pixel_range is not None:
            lines.append(f"Training scales the {deep:,} of more than 8 bits: {self.pixel_range} becomes 0 to 255.")
        if self.num_without_keypoints > TOLERATED * total:
            lines.append(f"{describe_share(self.num_without_keypoints, total, 'images')}.")
        elif total:
            lines.append(f"FAST finds no keypoints in {self.num_without_keypoints:,} of them.")
        return lines


def training_rows(images: datasets.DatasetDict) -> datasets.Dataset:
    """Return the split "train", or the first one where there is none."""
    return images["train"] if "train" in images else next(iter(images.values()))


def check_dataset(images: datasets.DatasetDict, image_column: str, num_proc: int | None = None) -> DatasetCheck:
    """Decode every image as training does; use nothing from an earlier check.

    Args:
        images: splits, with the image column as `datasets.Image(decode=False)`.
    """
    check = DatasetCheck()
    start = time.perf_counter()
    seen: dict[bytes, _Seen] = {}
    train = training_rows(images)
    check.num_channels = _channels_of_first(train, image_column)
    check.pixel_range = measure_pixel_range(train, image_column, num_proc, check.num_channels)
    for split, rows in images.items():
        check.num_images[split] = len(rows)
        settings = {"pixel_range": check.pixel_range, "num_channels": check.num_channels}
        once = {"load_from_cache_file": False, "keep_in_memory": True}
        what = f"Checking {split}"
        for row in map_images(rows, _inspect_batch, image_column, FACTS, settings, num_proc, what, **once):
            _add(check, row, split, seen)
        for column in stored_columns(rows.column_names):
            _add_densities(check, rows.select_columns([image_column, column]), image_column, column)
    _add_near_copies(check, list(seen.values()))
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
    return {name: [row[name] for row in found] for name in FACTS}


class _Seen(NamedTuple):
    split: str
    name: str
    look: bytes | None  # None for an image of one color


def _add(check: DatasetCheck, row: dict[str, Any], split: str, seen: dict[bytes, _Seen]) -> None:
    if row["error"] is not None:
        kind = re.sub(r"\d+", "N", re.sub(r" \([^()]*\)$", "", row["reason"]))
        check.bad.setdefault(kind, []).append(row["error"])
        return
    for trait in filter(None, row["traits"].split(",")):
        check.unusual.setdefault(trait, []).append(row["name"])
    if row["digest"] in seen:
        earlier = seen[row["digest"]]
        (check.copies if earlier.split == split else check.shared).append(f"{row['name']} ({earlier.name})")
    seen.setdefault(row["digest"], _Seen(split, row["name"], row["look"]))
    channels = row["channels"]
    check.pixels[f"{row['bits']}-bit {_CHANNELS.get(channels, f'{channels} channels')}"] += 1
    check.num_without_keypoints += not row["has_keypoints"]
    short, long = sorted((row["height"], row["width"]))
    check.short_sides.append(short)
    check.long_sides.append(long)
    check.num_bytes.append(row["num_bytes"])


def _add_near_copies(check: DatasetCheck, pictures: list[_Seen]) -> None:
    looks = {number: picture.look for number, picture in enumerate(pictures) if picture.look is not None}
    places = list(looks)
    for place, earlier_place in near_copies(list(looks.values())).items():
        later, earlier = pictures[places[place]], pictures[places[earlier_place]]
        found = check.near_copies if earlier.split == later.split else check.near_shared
        found.append(f"{later.name} ({earlier.name})")


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


def _summary(values: list[int]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else {}


def files_not_read(folder: Path, images: datasets.DatasetDict, image_column: str) -> Counter[str]:
    """Count, by suffix, the files in a folder that `datasets` does not take for images; archives count as read."""
    paths = {source["path"] for rows in images.values() for source in rows[image_column] if source}
    read = {os.path.realpath(path) for path in paths if path}
    files = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    suffixes = (os.path.splitext(file)[1].lower() for file in files if os.path.realpath(file) not in read)
    return Counter(printable(suffix or "without a suffix") for suffix in suffixes if suffix not in _ARCHIVES)
