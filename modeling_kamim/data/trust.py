"""Allow a data set to read only files in its own folder.

Its author may name any file or address in its texts (card, metadata, rows). Links are followed: the folder's owner made
them, and folders of links are common (a part of ImageNet, the Hub's cache). Only publishing refuses those leading out.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from huggingface_hub import DatasetCard

from ..errors import InputError, printable

logger = logging.getLogger(__name__)
_IMAGE_FIELDS = {"bytes", "path"}
_MOST_SHOWN = 200  # characters of a name
_SETTINGS_FILES = (datasets.config.REPOYAML_FILENAME, datasets.config.REPOCARD_FILENAME)


class OutsideError(InputError):
    """A data set names files outside of its folder.

    Args:
        name: of the data set.
        findings: lines, each of which says where which file is named.
    """

    def __init__(self, name: str, findings: Sequence[str]):
        more = f" (and {len(findings) - 1:,} more)" if len(findings) > 1 else ""
        super().__init__(
            f"data set {name!r} would read outside of its own folder: {findings[0]}{more}. Remove these entries, or, "
            "if you trust whoever wrote them, pass --trust_data_files true; kamim check lists them all"
        )
        self.findings = list(findings)


def refuse(name: str, findings: Sequence[str], trust_data_files: bool) -> None:
    """Raise OutsideError if there are findings; only warn if the user trusts the data set."""
    if findings and not trust_data_files:
        raise OutsideError(name, findings)
    if findings:
        logger.warning("Reading outside of the folder of %s: %s (%d in all)", name, findings[0], len(findings))


def folders_of(path: Path) -> tuple[str, ...]:
    """Return the folder of a local data set (a folder, or a file in it), as given and with links resolved."""
    folder = path if path.is_dir() else path.parent
    return tuple(dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))))


def is_inside(path: str, folders: Sequence[str]) -> bool:
    """Return whether a path, or the archive of `zip://MEMBER::ARCHIVE`, lies in one of some folders.

    A relative path starts at the working directory, from where it would be read. A link counts as lying where it is,
    not where it leads; but ".." after a link leaves the folder that the link leads to.
    """
    path = path.rpartition("::")[2] if path.startswith("zip://") else path
    if "://" in path or "\0" in path:
        return False
    full = os.path.realpath(path) if ".." in path else os.path.abspath(path)
    return any(full == folder or full.startswith(os.path.join(folder, "")) for folder in folders)


def settings_findings(folder: Path) -> list[str]:
    """Return the data files outside of a folder that its README.md or .huggingface.yaml makes `datasets` read.

    Raises:
        InputError: if one of these files cannot be read.
    """
    return [
        _line(f"{name} has {key}", pattern)
        for name in _SETTINGS_FILES
        for key, pattern in _patterns(folder / name)
        if re.search(r"://|::|(^|/)\.\.(/|$)", pattern) or not is_inside(str(folder / pattern), folders_of(folder))
    ]


def _patterns(file: Path) -> Iterator[tuple[str, str]]:
    configs = _settings(file).get("configs")
    for config in configs if isinstance(configs, list) else []:
        for key in ("data_files", "data_dir"):
            for pattern in _strings(config.get(key) if isinstance(config, Mapping) else None):
                yield key, os.path.expanduser(pattern)


def _settings(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        if file.suffix == ".md":
            return DatasetCard.load(file).data.to_dict()
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML raises nearly anything on wrong dates, numbers and tags
        raise InputError(f"{file} cannot be read as the card of a data set: {' '.join(str(error).split())}") from None
    return settings if isinstance(settings, Mapping) else {}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def file_findings(files: Iterable[str], allowed: Sequence[str]) -> list[str]:
    """Return the data files that lie in none of the `allowed` folders and begin with none of the addresses there."""
    addresses = tuple(place for place in allowed if "://" in place)
    return [
        _line("a data file is", file)
        for file in files
        if not ((addresses and file.startswith(addresses)) or is_inside(file, allowed))
    ]


def row_findings(table: pa.Table, folders: Sequence[str], image_columns: Iterable[str], place: str) -> list[str]:
    """Return the images of a table that have no bytes, and a path that leads out of some folders.

    Args:
        table: whose images are structs of bytes and path, at any depth, or plain paths.
        folders: that may be read.
        image_columns: that hold images, whatever their type.
        place: of the rows, for the findings: a split or file.
    """
    named = set(image_columns)
    findings = []
    for column in table.column_names:
        start = 0
        for chunk in table[column].chunks:
            for name, paths, rows in _paths(chunk, column, column in named):
                findings += [
                    _line(f"row {start + row} of {place} has in column {name!r}", path)
                    for row, path in _outside(paths, rows, folders)
                ]
            start += len(chunk)
    return findings


def _paths(values: pa.Array, name: str, is_image: bool) -> Iterator[tuple[str, pa.Array, pa.Array | None]]:
    """Yield, for the images of a column: name, paths (null where there are bytes), row numbers (None for all rows)."""
    if pa.types.is_struct(values.type):
        fields = {field.name for field in values.type}
        if "path" in fields and (is_image or fields <= _IMAGE_FIELDS):
            paths = pc.struct_field(values, "path")
            if "bytes" in fields:
                paths = pc.if_else(pc.is_null(pc.struct_field(values, "bytes")), paths, pa.scalar(None, paths.type))
            yield name, paths, None
            return
        for field in fields:
            yield from _paths(pc.struct_field(values, field), f"{name}.{field}", False)
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        parents = pc.list_parent_indices(values)
        for found, paths, rows in _paths(values.flatten(), name, is_image):
            yield found, paths, parents if rows is None else parents.take(rows)
    elif is_image:
        yield name, values, None


def _outside(paths: pa.Array, rows: pa.Array | None, folders: Sequence[str]) -> Iterator[tuple[int, str]]:
    if pa.types.is_dictionary(paths.type):
        paths = paths.dictionary_decode()
    if not (pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)):
        return
    suspect = pc.is_valid(paths)
    for folder in folders:  # leave out the many plain paths at once: there may be millions
        starts = pc.starts_with(paths, os.path.join(folder, ""))
        is_plain = pc.and_not(starts, pc.match_substring_regex(paths, r"\.\.|\x00"))
        suspect = pc.and_not(suspect, pc.fill_null(is_plain, False))
    for place in pc.indices_nonzero(suspect).to_pylist():
        path = paths[place].as_py()
        if not is_inside(path, folders) and not _is_missing(path):
            yield place if rows is None else rows[place].as_py(), path


def _is_missing(path: str) -> bool:
    """Return whether it is only the name of an image that is missing: a bad image, and no other file."""
    is_name = not os.path.isabs(path) and ".." not in Path(path).parts and "://" not in path
    return is_name and not os.path.lexists(path)


def link_findings(splits: datasets.DatasetDict, image_column: str, name: str) -> list[str]:
    """Return the images of a local data set that links lead out of its folder: links, or files behind links."""
    folder = Path(name).expanduser()
    if not folder.exists():
        return []
    chunks = [chunk for rows in splits.values() for chunk in rows.data.table[image_column].chunks]
    paths = [paths for chunk in chunks for _, paths, _ in _paths(chunk, image_column, True)]
    real_parent = cache(os.path.realpath)
    findings = []
    for path in (path for some in paths for path in some.drop_null().to_pylist()):
        target = os.path.join(real_parent(os.path.dirname(path)), os.path.basename(path))
        target = os.path.realpath(target) if os.path.islink(target) else target
        if not is_inside(target, folders_of(folder)[-1:]):
            findings.append(_line(f"the link {path} leads to", target))
    return findings


def _line(what: str, name: str) -> str:
    name = printable(name)
    return f"{printable(what)} {name if len(name) <= _MOST_SHOWN else name[:_MOST_SHOWN] + '…'}"
