"""What a run directory tells of its run, whatever state it was left in; nothing here imports torch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexvae_cli.engine.checkpoint import MODEL, STATE
from flexvae_cli.engine.reading import read_json
from flexvae_cli.engine.report.files import Row, bad_files, metrics, previews, skipped, text
from flexvae_cli.engine.rundir import RunDirectory, step_directories, step_of
from flexvae_cli.engine.sealed import read_sealed
from flexvae_cli.errors import ModelError

STARTED = re.compile(r"[\d,]+ parameters, (\d+) images \(([^)]*)\), (\S+), ([\d,]+) steps, ")


@dataclass(frozen=True)
class Facts:
    """A run as its directory tells it.

    Attributes:
        status: `finished`, `training`, `stopped` (by a signal), `diverged` or `interrupted`.
        step: the last step that anything was written of.
        max_steps: the length of the run; None where it cannot be told.
        images: `44 images (16 held out)`, as the log has it.
        settings: the resolved settings, as JSON values.
        environment: what the newest checkpoint says of the machine.
        bad_files: (name, reason) each.
        skipped: the steps whose update was skipped, and the images that they saw.
        previews: (step, file) each, oldest first.
        problems: what of the directory could not be read.
    """

    path: Path
    name: str
    status: str
    step: int
    max_steps: int | None
    device: str
    images: str
    flexvae: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    checkpoint: int | None
    rows: tuple[Row, ...]
    log: tuple[str, ...]
    bad_files: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[int, tuple[str, ...]], ...]
    previews: tuple[tuple[int, Path], ...]
    problems: tuple[str, ...]

    @property
    def times(self) -> list[float]:
        """When its metrics were written, in seconds since 1970."""
        return [row.time for row in self.rows if row.time is not None]

    def column(self, kind: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a number, NaN included."""
        return [(row.step, row.values[name]) for row in self.rows if row.kind == kind and name in row.values]


def read_run(path: Path) -> Facts:
    """Read all of a run but its tensors.

    Raises:
        ModelError: there is no such directory, or it holds no run.
    """
    run, problems = RunDirectory(path), list[str]()
    _require_run(run)
    log = tuple(text(run.log, problems).rstrip("\n").split("\n"))
    config = _config(run, problems)
    checkpoint, environment, settings = _newest_state(run.checkpoints, problems)
    settings = config.get("settings") or settings
    rows = tuple(metrics(run.metrics, problems))
    started = [found for line in log if (found := STARTED.match(line))]
    images, held, device, steps = started[-1].groups() if started else ("", "", "", "")
    step = max([row.step for row in rows] + [checkpoint or 0])
    max_steps = int(steps.replace(",", "")) if steps else _max_steps(settings)
    return Facts(
        path=path,
        name=path.resolve().name,
        status=_status(path, log, step, max_steps),
        step=step,
        max_steps=max_steps,
        device=device or str(environment.get("device", "")),
        images=f"{images} images ({held})" if images else "",
        flexvae=str(config.get("flexvae", "")),
        settings=settings,
        environment=environment,
        checkpoint=checkpoint,
        rows=rows,
        log=log,
        bad_files=tuple(bad_files(run.bad_files, problems)),
        skipped=tuple(skipped(path)),
        previews=tuple(previews(run.previews)),
        problems=tuple(problems),
    )


def _max_steps(settings: dict[str, Any]) -> int | None:
    train = settings.get("train")
    found = train.get("max_steps") if isinstance(train, dict) else None
    return found if type(found) is int and found > 0 else None


def _require_run(run: RunDirectory) -> None:
    path = run.path
    hint = "give the directory that train.run_dir of its config names"
    if not path.exists():
        raise ModelError("no such run directory", where=str(path), hint=hint)
    if path.is_file():
        raise ModelError("is a file, not a run directory", where=str(path), hint=hint)
    if (path / MODEL).exists():
        within = path.parent.name == "ckpt"
        hint = f"flexvae report {path.parent.parent}" if within else hint
        raise ModelError("is a checkpoint or a bundle, not a run", where=str(path), hint=hint)
    if step_directories(run.checkpoints):
        return
    if not run.config.is_file():
        raise ModelError("holds no run", where=str(path), hint=hint)
    config: dict[str, Any] = {"flexvae": "", "settings": {}}
    with contextlib.suppress(ModelError):  # a damaged one is told of on the page
        config = read_json(run.config)
    if config.keys() != {"flexvae", "settings"}:
        raise ModelError("holds no run: its config.json is not FlexVAE's", where=str(path), hint=hint)


def _config(run: RunDirectory, problems: list[str]) -> dict[str, Any]:
    try:
        config = read_json(run.config)
    except ModelError as error:
        problems.append(str(error.problems[0]))
        return {}
    return config if isinstance(config.get("settings"), dict) else {}


def _newest_state(checkpoints: Path, problems: list[str]) -> tuple[int | None, dict[str, Any], dict[str, Any]]:
    """Step, environment and settings of the newest checkpoint whose state can be read."""
    for path in step_directories(checkpoints):
        try:
            state = read_sealed(path / STATE)
        except ModelError as error:
            if path.exists():  # else the run went on, and removed it
                problems.append(f"passed over a damaged checkpoint: {error.problems[0]}")
            continue
        found = (state.get(key) for key in ("environment", "settings"))
        environment, settings = (value if isinstance(value, dict) else {} for value in found)
        return step_of(path), environment, settings
    return None, {}, {}


def _status(path: Path, log: tuple[str, ...], step: int, max_steps: int | None) -> str:
    """What became of the run; the log's last line says how it ended, where it came to an end."""
    if _is_held(path / ".lock"):
        return "training"
    last = log[-1] if log else ""
    if last.startswith("done: ") or (max_steps and step >= max_steps):
        return "finished"
    if last.startswith("ended by an error: training diverged"):
        return "diverged"
    return "stopped" if last.startswith("stopped at ") else "interrupted"


def _is_held(lock: Path) -> bool:
    """Whether a process holds the run, as far as its note says and, on this machine, the system agrees."""
    try:
        note = json.loads(lock.read_bytes()[:4096].partition(b"\n")[2]) if lock.is_file() else None
        if not isinstance(note, dict):
            return False
        if note["host"] == socket.gethostname():
            os.kill(int(note["pid"]), 0)
    except PermissionError:  # a process of somebody else
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
