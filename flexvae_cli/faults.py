"""What goes wrong in a stranger's code, in one line: what it is, whose it is, and in which file and line."""

from __future__ import annotations

import contextlib
import importlib
import linecache
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from types import FrameType
from typing import Any

from flexvae_cli.entry_points import CORE, PLUGINS, claims, installed_commands
from flexvae_cli.errors import Terminated


def isolated(call: Callable[[], Any], problems: list[str], what: str, package: str = "") -> Any:
    """The result of a stranger's code, or None with a line on what it raised and where; see `fault`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a print at import must not spoil --json
            return call()
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # a plugin may even call sys.exit
        problems.append(f"{what}: {fault(error, package)}{_mend(error)}")
        return None


def fault(error: BaseException, package: str = "") -> str:
    """What a stranger's code raised, in one line, with the file and line where it did.

    Args:
        package: whose code it is, `zoo` or a module in it; what it called in torch or elsewhere is not where to look.
    """
    folders = [os.path.dirname(file) + os.sep for file in (__file__, importlib.__file__)]  # noqa: PTH120
    ours = (*folders, "<frozen importlib")
    frames = [(frame.f_code.co_filename, line, _package_of(frame)) for frame, line in _frames(error)]
    frames = [frame for frame in frames if not frame[0].startswith(ours)]
    frames = [frame for frame in frames if frame[2] == package.partition(".")[0]] or frames
    where = f" ({frames[-1][0]}:{frames[-1][1]})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({error.filename}:{error.lineno})"
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ") + where


def _frames(error: BaseException) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(error.__traceback__))


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def place_of(thing: Any, text: str = "") -> str:
    """`file:line` of a function, or of the line of a module that begins with `text`; nothing where there is no file."""
    code, file = getattr(thing, "__code__", None), getattr(thing, "__file__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    lines = enumerate(linecache.getlines(file), 1) if file else ()
    return f"{file}:{next((n for n, line in lines if line.startswith(text)), 1)}" if file else ""


def at(thing: Any, text: str = "") -> str:
    """` (file:line)` behind a message, see `place_of`."""
    place = place_of(thing, text)
    return f" ({place})" if place else ""


def culprit(error: BaseException) -> str:
    """The plugin in whose code something went wrong: `flexvae-zoo 1.2, zoo/blocks.py:12`; nothing where in none."""
    points = [*claims(entry_points(group=PLUGINS), {}), *installed_commands()]
    owners = {c.package: c for c in points if c.distribution != CORE}
    for frame, line in reversed(_frames(error)):
        owner = owners.get(_package_of(frame))
        if owner is not None:
            return f"{owner.distribution} {owner.version}, {frame.f_code.co_filename}:{line}"
    return ""


def _mend(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"; pip install what brings '{error.name.partition('.')[0]}', or uninstall the plugin"
    return ""
