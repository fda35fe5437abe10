"""The values that codes can hold: their types, for a factory's signature, and how they are read and written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}", re.ASCII)
INTEGER = re.compile(r"-?[0-9]{1,10}", re.ASCII)
NUMBER = re.compile(r"-?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
WORD = re.compile(r"[A-Za-z0-9.-]+", re.ASCII)
LARGEST = 2**31 - 1


class Range(NamedTuple):
    """Inclusive bounds of a number, or of each number of a `Size` or `Ints`."""

    least: float = -LARGEST
    most: float = LARGEST

    def __str__(self) -> str:
        if self.most >= LARGEST:
            return f"at least {self.least:g}"
        return f"at most {self.most:g}" if self.least <= -LARGEST else f"from {self.least:g} to {self.most:g}"


Count = Annotated[int, Range(1)]
"""A whole number from 1."""
Dimension = Literal[1, 2, 3]
Probability = Annotated[float, Range(0, 1)]
"""A number from 0 to 1."""
Size = Annotated[int | tuple[int, ...], "size", Range(1)]
"""One number for every axis (`3`), or one for each (`3x5x5`); at least 1."""
Padding = Annotated[int | tuple[int, ...], "size", Range(0)]
"""Like `Size`, from 0."""
Ints = Annotated[tuple[int, ...], "ints", Range(1)]
"""A list of whole numbers (`8.5.5.5`)."""
WeightFile = Annotated[str, "file"]
"""The path of a file of trained weights, which only a table of a config can give: the parameter is called `weights`."""


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a factory, as codes and help know it."""

    name: str
    kind: Literal["int", "float", "bool", "str", "choice", "size", "ints", "file"]
    positional: bool
    required: bool
    default: Any = None
    help: str = ""
    choices: tuple[Any, ...] = ()
    range: Range = Range()

    @property
    def option(self) -> str:
        """The name inside codes, where `_` is the separator: `kernel_size` -> `kernel-size`."""
        return self.name.replace("_", "-")

    @property
    def wants(self) -> str:
        """What a value must be, for messages and help: `a whole number, at least 1`."""
        if self.kind == "choice":
            return " or ".join(self.format(c) for c in self.choices)
        noun = {
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
            "str": "a word",
            "size": "a size such as 3 or 3x5",
            "ints": "numbers such as 8.5.5",
            "file": "a file",
        }[self.kind]
        return noun if self.range == Range() else f"{noun}, {self.range}"

    def parse(self, text: str) -> Any:
        """The value written as `text`.

        Raises:
            ValueError: `text` is not what the parameter wants.
        """
        value = self._read(text)
        numbers = value if isinstance(value, tuple) else (value,)
        if self.kind in ("int", "float", "size", "ints") and not all(
            self.range.least <= n <= self.range.most for n in numbers
        ):
            raise ValueError(f"wants {self.wants}, not {text}")
        return value

    def _read(self, text: str) -> Any:
        if self.kind == "choice":
            for choice in self.choices:
                if text == self.format(choice):
                    return choice
        elif self.kind == "int" and INTEGER.fullmatch(text):
            return int(text)
        elif self.kind == "float" and NUMBER.fullmatch(text) and abs(float(text)) <= 1e30:
            return float(text)
        elif self.kind == "bool" and text in ("true", "false"):
            return text == "true"
        elif self.kind == "str" and WORD.fullmatch(text):
            return text
        elif self.kind in ("size", "ints"):
            parts = text.split("x" if self.kind == "size" else ".")
            if len(parts) <= 16 and all(INTEGER.fullmatch(part) for part in parts):
                numbers = tuple(int(part) for part in parts)
                return numbers[0] if self.kind == "size" and len(numbers) == 1 else numbers
        elif self.kind == "file":
            raise ValueError("is the path of a file, which no code can hold; write a table, [[loss.term]]")
        raise ValueError(f"wants {self.wants}, not '{text}'")

    def format(self, value: Any) -> str:
        """The one way a value is written: `parse(format(v)) == v`."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return short if float(short := f"{value:g}") == value else repr(value)
        if isinstance(value, tuple):
            return ("x" if self.kind == "size" else ".").join(str(n) for n in value)
        return str(value).replace("_", "-")
