"""Settings that are given as keywords: the same names, types and checks as on the command line."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from huggingface_hub.dataclasses import type_validator

from ..errors import InputError, did_you_mean, on_one_line
from ..limits import check_choice

_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, ImportError, RecursionError)


def checked_settings(argument_types: Sequence[type], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are given, in the types of their dataclasses; None stands for the default.

    Raises:
        InputError: for an unknown name (with the nearest known one), or a value of another type or choice.
    """
    hints = {kind: get_type_hints(kind) for kind in argument_types}
    known = {
        field.name: (field, hints[kind][field.name]) for kind in argument_types for field in fields(kind) if field.init
    }
    for name in given:
        if name not in known:
            raise InputError(f"unknown setting {name!r}{did_you_mean(name, known)}")
    return {name: _checked(*known[name], value) for name, value in given.items() if value is not None}


def make_settings(argument_types: Sequence[type], checked: Mapping[str, Any]) -> list[Any]:
    """Return the dataclasses of a function with settings of `checked_settings`.

    Raises:
        InputError: for a value that is out of range, or does not go with the others.
    """
    with refusals():
        return [
            kind(**{field.name: checked[field.name] for field in fields(kind) if field.name in checked})
            for kind in argument_types
        ]


@contextmanager
def refusals(advice: str = "") -> Iterator[None]:
    """Raise InputError where a dataclass, above all one of transformers, does not take a value."""
    try:
        yield
    except InputError:
        raise
    except _REFUSALS as error:
        raise InputError(f"{on_one_line(error)}{advice}") from error


def _checked(field: Field, hint: Any, value: Any) -> Any:
    value = _natural(value, hint)
    if choices := field.metadata.get("choices") or _choices(hint):
        check_choice(field.name, value, choices)
    else:
        try:
            type_validator(field.name, value, hint)
        except TypeError:
            kind = hint.__name__ if isinstance(hint, type) else hint
            raise InputError(f"{field.name} is {value!r}; it must be {kind}") from None
    return value


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _choices(hint: Any) -> tuple[Any, ...]:
    literals = [kind for kind in _kinds(hint) if get_origin(kind) is Literal]
    return get_args(literals[0]) if literals else ()


def _natural(value: Any, hint: Any) -> Any:
    """Return a value as Python means it: whole numbers for floats, paths for texts, a number for a list of it."""
    kinds = _kinds(hint)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    if any(list in (kind, get_origin(kind)) for kind in kinds) and type(value) not in (list, *kinds):
        return list(value) if isinstance(value, tuple) else [value]
    return value
