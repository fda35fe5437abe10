"""What goes wrong, said once: a problem has a thing, a place and a next step; every error has an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of the command line."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2  # usage, config or structure
    DATA = 3  # input data
    MODEL = 4  # model or checkpoint file
    RESOURCES = 5  # memory, disk, run directory in use
    DIVERGED = 6
    PLUGIN = 7  # a plugin failed, where one was asked for
    INTERRUPTED = 130
    TERMINATED = 143


class Terminated(SystemExit):
    """A signal ends the program, wherever it is: unlike a `sys.exit` in a plugin, it is nobody's fault."""


DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says where the disk is full, or the quota, or the size that a file may have."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with what the user gave.

    Attributes:
        what: the problem in one line, lower case, the thing first.
        where: `file`, `file:line` or `file[entry]`; empty where there is none.
        text: the offending source text, shown below the message.
        span: the characters of `text` to underline, as (start, end).
        hint: what to type next.
        usage: the usage line of the layer concerned.
    """

    what: str
    where: str = ""
    text: str = ""
    span: tuple[int, int] | None = None
    hint: str = ""
    usage: str = ""

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.text:
            lines += underlined(self.text, self.span)
        if self.usage:
            lines.append(f"usage: {self.usage}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class FlexVAEError(Exception):
    """An error that the user can mend: the command prints its problems, one after the other, and exits with `code`."""

    code = Exit.UNEXPECTED

    def __init__(self, *problems: str | Problem, where: str = "", hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = tuple(
            Problem(p, where=where, hint=hint) if isinstance(p, str) else p for p in problems
        )
        super().__init__("\n".join(str(p) for p in self.problems))


class UsageError(FlexVAEError):
    """The command line, the config or a structure file is wrong."""

    code = Exit.USAGE


class DataError(FlexVAEError):
    """The input data cannot be used."""

    code = Exit.DATA


class ModelError(FlexVAEError):
    """A model, checkpoint or latent file is damaged, foreign or incomplete."""

    code = Exit.MODEL


class ResourceError(FlexVAEError):
    """Memory, disk, or a run directory that is in use."""

    code = Exit.RESOURCES


class DivergedError(FlexVAEError):
    """Training no longer yields finite numbers."""

    code = Exit.DIVERGED


class PluginError(FlexVAEError):
    """A plugin failed: under `--strict-plugins`, in `plugins check`, or its subcommand cannot be loaded."""

    code = Exit.PLUGIN


ERRORS: dict[int, type[FlexVAEError]] = {
    kind.code: kind for kind in (UsageError, DataError, ModelError, ResourceError, DivergedError, PluginError)
}
"""The error that ends with an exit code, for each code that one ends with."""


WINDOW = 96  # columns of source text shown around an underlined span


def underlined(text: str, span: tuple[int, int] | None) -> list[str]:
    """The source text and a line of carets under `span`, cut to a window where the text is long."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if span is None:
        return [f"  {shown[:WINDOW]}" + ("..." if len(shown) > WINDOW else "")]
    start, end = span
    left = max(0, min(start - WINDOW // 2, len(shown) - WINDOW))
    window = shown[left : left + WINDOW]
    carets = " " * (start - left) + "^" * max(1, min(end, left + WINDOW) - start)
    before, after = "..." if left else "", "..." if left + WINDOW < len(shown) else ""
    return [f"  {before}{window}{after}", f"  {' ' * len(before)}{carets}"]


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that a person may have meant by `name`, best first."""
    import difflib

    names = list(known)
    by_fold = {n.casefold(): n for n in names}
    exact = by_fold.get(name.casefold())
    close = difflib.get_close_matches(name.casefold(), by_fold, n=count, cutoff=0.6)
    found = [by_fold[c] for c in close]
    return list(dict.fromkeys(([exact] if exact else []) + found))[:count]


def did_you_mean(name: str, known: Iterable[str], quote: str = "'") -> str:
    """`; did you mean 'C2d'?`, or nothing where no known name is near."""
    found = nearest(name, known)
    return f"; did you mean {listed(found, quote)}?" if found else ""


def listed(names: Sequence[str], quote: str = "'", last: str = "or") -> str:
    """`'a'`, `'a' or 'b'`, `'a', 'b' or 'c'`."""
    quoted = [f"{quote}{n}{quote}" for n in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"
