"""What a value of a config may be: paths, shapes, sizes in bytes, numbers in a range; and the base of every table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, Strict


class RelativePath:
    """Marks a key whose value is a path relative to the file that it stands in; `loading.py` resolves it."""


def parse_shape(value: object) -> object:
    """`"3x256x256"` -> `(3, 256, 256)`; tuples pass."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})+", value, re.ASCII):
        raise ValueError("wants channels x size, as in '3x256x256'")
    return tuple(int(n) for n in value.split("x"))


def parse_bytes(value: object) -> object:
    """`"24GiB"` -> bytes; decimal (MB, GB) and binary (MiB, GiB) units; a plain number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([KMGT]i?)?B?", text, re.ASCII)
    if not match:
        raise ValueError("wants a size such as '512MiB' or '24GiB'")
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match[1]) * base ** ("KMGT".index(unit[0]) + 1 if unit else 0))


def parse_path(value: object) -> object:
    """Refuses what no file can be called."""
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("wants a path")
    return value


AnyPath = Annotated[Path, Strict(False), RelativePath(), BeforeValidator(parse_path, json_schema_input_type=str)]
Source = Annotated[str, RelativePath(), BeforeValidator(parse_path, json_schema_input_type=str)]
Shape = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Field(min_length=2),
    PlainSerializer(lambda shape: "x".join(str(n) for n in shape), return_type=str, when_used="json"),
    BeforeValidator(parse_shape, json_schema_input_type=str),
]
Bytes = Annotated[int, Field(ge=1), BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)
