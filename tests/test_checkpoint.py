"""Checkpoints survive kills, power loss, full disks and damage."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import shutil
import stat
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from flexvae_cli.engine import checkpoint as module
from flexvae_cli.engine.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from flexvae_cli.engine.files import CRASH_POINTS, DiskFullError
from flexvae_cli.engine.modelfiles import read_model
from flexvae_cli.engine.reading import json_bytes, seal_of
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.errors import Exit, ModelError, ResourceError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
MORE = 20 if os.environ.get("FLEXVAE_NIGHTLY") else 1
NAMES = ("model.safetensors", "model.json", "training.safetensors", "state.json")


def content(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {f"layer.{i}.weight": torch.randn(8, 4, generator=generator) for i in range(2)}
    return {
        "weights": weights | {"codebook.count": torch.tensor(step)},
        "model": {"encoder": ["C2d_3_8_3_1_1"], "input": [3, 8, 8]},
        "training": {"0.exp_avg": torch.randn(8, 4, generator=generator)},
        "state": {"lr": 1e-4 / (step + 1), "seed": 7, "config": {"train": {"lr": 0.0004}}},
    }


def save(run: Path, step: int, keep_last: int = 2) -> Path:
    return save_checkpoint(run, step, **content(step), keep_last=keep_last)


def same(found: Checkpoint, step: int) -> bool:
    wanted = content(step)
    tensors = [(found.weights(), wanted["weights"]), (found.training(), wanted["training"])]
    return (
        (found.step, found.model, found.state) == (step, wanted["model"], wanted["state"])
        and all(a.keys() == b.keys() for a, b in tensors)
        and all(torch.equal(a[name], b[name]) for a, b in tensors for name in b)
    )


def names(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.parent in {run, run / "ckpt"})


def reseal(path: Path, **changes: object) -> None:
    """Rewrites a sealed file as one who knows the format would."""
    value = json.loads(path.read_text()) | changes
    value.pop("seal")
    path.write_bytes(json_bytes({**value, "seal": seal_of(value)}))


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints at steps 1 and 2."""
    save(tmp_path / "run", 1)
    save(tmp_path / "run", 2)
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------------- save, read, prune


def test_round_trip(tmp_path):
    path = save(tmp_path, 1234)
    assert path == tmp_path / "ckpt" / "step-00001234"
    assert sorted(p.name for p in path.iterdir()) == sorted(NAMES)
    newest, problems = newest_checkpoint(tmp_path)
    assert newest is not None
    assert same(newest, 1234)
    assert problems == []


def test_what_was_read_can_be_changed_and_outlives_its_file_which_stays_as_it_was(tmp_path):
    path = save(tmp_path, 1)
    weights = read_checkpoint(path).weights()
    weights["layer.0.weight"].zero_()
    assert same(read_checkpoint(path), 1)
    shutil.rmtree(path)
    assert torch.equal(weights["layer.1.weight"], content(1)["weights"]["layer.1.weight"])
    assert not weights["layer.0.weight"].any()


def test_files_honour_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o644}


@pytest.mark.parametrize(("keep_last", "kept"), [(0, [5, 4]), (2, [5, 4]), (3, [5, 4, 3]), (9, [5, 4, 3, 2, 1])])
def test_the_newest_are_kept_and_never_fewer_than_two(tmp_path, keep_last, kept):
    for step in range(1, 6):
        save(tmp_path, step, keep_last)
    assert [int(p.name[5:]) for p in module.step_directories(tmp_path / "ckpt")] == kept
    assert names(tmp_path) == ["ckpt", *(f"ckpt/step-{step:08d}" for step in reversed(kept))]


def test_newest_is_by_number_and_not_by_name(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    newest, _ = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 100_000_000


def test_an_empty_run_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert resume_checkpoint(tmp_path) == (None, [])


def test_a_step_is_saved_once_but_a_damaged_one_is_replaced(run):
    inode = (run / "ckpt/step-00000002/model.safetensors").stat().st_ino
    save(run, 2)
    assert (run / "ckpt/step-00000002/model.safetensors").stat().st_ino == inode
    (run / "ckpt/step-00000002/model.safetensors").write_bytes(b"")
    assert same(read_checkpoint(save(run, 2)), 2)
    assert names(run) == ["ckpt", "ckpt/step-00000001", "ckpt/step-00000002"]


@pytest.mark.parametrize("key", ["format", "weights", "step", "files", "seal"])
def test_reserved_keys_are_refused(tmp_path, key):
    for part in ("model", "state"):
        parts = content(1)
        parts[part][key] = 1
        with pytest.raises(ValueError, match=key):
            save_checkpoint(tmp_path, 1, **parts)
    assert names(tmp_path) == ["ckpt"]


def test_a_link_in_the_place_of_a_checkpoint_is_not_followed(run, tmp_path):
    (tmp_path / "outside").mkdir()
    (run / "ckpt/step-00000003").symlink_to(tmp_path / "outside")
    with pytest.raises(ResourceError):
        save(run, 3)
    assert not list((tmp_path / "outside").iterdir())


# --------------------------------------------------------------------------------------------------- kill -9, R1


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_at_any_point_the_newest_is_the_old_or_the_new_one(run, tmp_path, point, monkeypatch):
    passages = range(1, 4) if point.startswith("directory") else range(1, 28, 1 if MORE > 1 else 4)
    died = 0
    for passage in passages:
        trial = tmp_path / f"trial{passage}"
        shutil.copytree(run, trial)
        monkeypatch.setenv("FLEXVAE_CRASH_AT", f"{point}:{passage}")
        if (child := os.fork()) == 0:
            for step in (3, 4, 5):
                save(trial, step)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        monkeypatch.delenv("FLEXVAE_CRASH_AT")
        died += code == -9
        newest, problems = newest_checkpoint(trial)
        assert problems == []
        assert newest is not None
        assert newest.step in ({2, 3, 4, 5} if code else {5})
        assert same(newest, newest.step)
        with RunDirectory(trial, resume=True):
            assert not list(trial.rglob(".tmp-*")) + list(trial.rglob(".del-*"))
            assert same(read_checkpoint(save(trial, newest.step + 1)), newest.step + 1)
    assert died >= 3


# --------------------------------------------------------------------------------------------------- power loss, R26


class Disk:
    """Records what a program asks of the disk, and tells what may be there after a loss of power.

    Operations on names count as done once their directory was fsynced after them, writes once their file was; of all
    others any subset may have happened. (A rename is one operation, as on every file system with a journal.)
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.operations: list[tuple] = []
        self.base = {p: p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}
        for name in ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, getattr(self, name)(getattr(os, name)))

    def path(self, path, dir_fd=None) -> Path:
        return (Path(f"/proc/self/fd/{dir_fd}").readlink() if dir_fd is not None else Path()) / path

    def open(self, real):
        def open(path, flags, *args, **options):
            fd = real(path, flags, *args, **options)
            if flags & os.O_CREAT:
                self.operations.append(("create", self.path(path)))
            return fd

        return open

    def on_descriptor(self, name, real):
        def call(fd, *data):
            self.operations.append((name, self.path("", fd), *map(bytes, data)))
            return real(fd, *data)

        return call

    def write(self, real):
        return self.on_descriptor("write", real)

    def fsync(self, real):
        return self.on_descriptor("fsync", real)

    def on_name(self, name, real):
        def call(path, *args, dir_fd=None, **options):
            result = real(path, *args, **({"dir_fd": dir_fd} if dir_fd is not None else {}), **options)
            self.operations.append((name, self.path(path, dir_fd), *(a for a in args if isinstance(a, Path))))
            return result

        return call

    def mkdir(self, real):
        return self.on_name("mkdir", real)

    def unlink(self, real):
        return self.on_name("unlink", real)

    def rmdir(self, real):
        return self.on_name("unlink", real)

    def rename(self, real):
        return self.on_name("rename", real)

    replace = rename

    def by_inode(self, operations: list[tuple]) -> list[tuple]:
        """The operations with the files and directories that the paths meant at the time."""
        inode = {self.root: 0} | {path: number for number, path in enumerate(self.base, 1)}
        fresh = itertools.count(len(inode))
        self.directories = {inode[path] for path, data in self.base.items() if data is None}
        steps: list[tuple] = []
        for kind, path, *rest in operations:
            if kind in {"create", "mkdir"}:
                if path in inode:
                    continue
                inode[path] = next(fresh)
                steps.append(("link", inode[path.parent], path.name, inode[path]))
                if kind == "mkdir":
                    self.directories.add(inode[path])
            elif kind == "write":
                steps.append(("write", inode[path], rest[0]))
            elif kind == "fsync":
                steps.append(("fsync", inode[path]))
            elif kind == "unlink":
                steps.append(("unlink", inode[path.parent], path.name, inode.pop(path)))
            else:
                moved = {p: rest[0] / p.relative_to(path) for p in inode if p.is_relative_to(path)}
                steps.append(
                    ("rename", inode[path.parent], path.name, inode[path], inode[rest[0].parent], rest[0].name)
                )
                inode.update({new: inode.pop(old) for old, new in moved.items()})
        return steps

    def states(self, operations: list[tuple], chance: random.Random):
        """For every moment: what the disk may hold then, and whether that moment is the end."""
        steps = self.by_inode(operations)
        for end in range(len(steps) + 1):
            pending = [
                i for i, s in enumerate(steps[:end]) if s[0] != "fsync" and not self.is_safe(s, steps[i + 1 : end])
            ]
            choices = [set(), set(pending)] + [{i} for i in pending] + [set(pending) - {i} for i in pending]
            choices += [{i for i in pending if chance.random() < 0.5} for _ in range(8 * MORE)]
            for dropped in choices:
                yield self.rebuild([s for i, s in enumerate(steps[:end]) if i not in dropped]), end == len(steps)

    @staticmethod
    def is_safe(step: tuple, later: list[tuple]) -> bool:
        synced = {s[1] for s in later if s[0] == "fsync"}
        return step[4] in synced if step[0] == "rename" else step[1] in synced

    def rebuild(self, steps: list[tuple]) -> dict[str, bytes | None]:
        """Path -> content (None for a directory) after these operations and no others."""
        number = {self.root: 0} | {path: n for n, path in enumerate(self.base, 1)}
        data: dict[int, bytes] = defaultdict(bytes, {number[p]: d for p, d in self.base.items() if d is not None})
        entries: dict[int, dict[str, int]] = defaultdict(dict)
        for path in self.base:
            entries[number[path.parent]][path.name] = number[path]
        for kind, where, *rest in steps:
            if kind == "link":
                name, inode = rest
                entries[where][name] = inode
            elif kind == "write":
                data[where] += rest[0]
            elif kind == "unlink":
                entries[where].pop(rest[0], None)
            elif kind == "rename":
                name, inode, to, new = rest
                entries[where].pop(name, None)
                entries[to][new] = inode
        found: dict[str, bytes | None] = {}

        def walk(directory: int, prefix: str) -> None:
            for name, inode in entries[directory].items():
                found[prefix + name] = None if inode in self.directories else data[inode]
                walk(inode, f"{prefix}{name}/")

        walk(0, "")
        return found

    def write_out(self, state: dict[str, bytes | None], place: Path) -> None:
        place.mkdir()
        for name, what in state.items():
            if what is None:
                (place / name).mkdir()
            else:
                (place / name).write_bytes(what)


def after_power_loss(disk: Disk, operations: list[tuple], tmp_path: Path) -> set[tuple[int | None, bool]]:
    """The step of the newest checkpoint in every state the disk may be in, each with whether all had been asked for."""
    seen: dict[tuple, int | None] = {}
    results = set()
    for state, at_end in disk.states(operations, random.Random(0)):
        key = tuple(sorted(state.items(), key=lambda item: item[0]))
        if key not in seen:
            place = tmp_path / "after"
            disk.write_out(state, place)
            newest, _ = newest_checkpoint(place)
            assert newest is None or same(newest, newest.step)
            seen[key] = newest and newest.step
            shutil.rmtree(place)
        results.add((seen[key], at_end))
    assert len(seen) > 20
    return results


def recorded(root: Path, work) -> tuple[Disk, list[tuple]]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)
        work()
    return disk, disk.operations


def test_power_loss_leaves_a_whole_checkpoint(run, tmp_path):
    disk, operations = recorded(run, lambda: save(run, 3))
    assert {kind for kind, *_ in operations} == {"create", "mkdir", "write", "fsync", "rename", "unlink"}
    assert after_power_loss(disk, operations, tmp_path) == {(2, False), (3, False), (3, True)}


def test_power_loss_after_the_first_checkpoint_of_a_run_keeps_it(tmp_path):
    def start() -> None:
        with RunDirectory(root / "run") as held:
            held.write_config({"a": 1})
            save(held.path, 0)

    root = tmp_path / "root"
    root.mkdir()
    disk, operations = recorded(root, start)
    disk_states = {
        "run/ckpt/step-00000000/state.json" in state and "run/config.json" in state
        for state, at_end in disk.states(operations, random.Random(0))
        if at_end
    }
    assert disk_states == {True}


@pytest.mark.parametrize("forgotten", ["model.safetensors", "state.json", "ckpt", ".tmp-"])
def test_the_power_loss_model_notices_a_forgotten_fsync(run, tmp_path, forgotten):
    disk, operations = recorded(run, lambda: save(run, 3))
    careless = [
        (kind, path, *rest)
        for kind, path, *rest in operations
        if not (kind == "fsync" and (path.name.startswith(forgotten)))
    ]
    assert len(careless) < len(operations)
    assert (2, True) in after_power_loss(disk, careless, tmp_path)


# ----------------------------------------------------------------------------------------------------- disk full, R5


def writes_of_a_save(run: Path, call: str) -> int:
    _, operations = recorded(run, lambda: save(run, 3))
    shutil.rmtree(run / "ckpt/step-00000003")
    save(run, 1)
    return sum(kind == call for kind, *_ in operations)


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_at_every_call_leaves_the_run_as_it_was(run, call, number, monkeypatch):
    before, total = names(run), writes_of_a_save(run, call)
    assert total >= 6
    for k in range(1, total if call == "write" else total - 1):  # after the rename, the checkpoint is there
        with monkeypatch.context() as patch:
            countdown, real = itertools.count(1), getattr(os, call)

            def failing(*args, countdown=countdown, real=real, k=k):
                if next(countdown) >= k:
                    raise OSError(number, "No space left on device")
                return real(*args)

            patch.setattr(os, call, failing)
            with pytest.raises(
                DiskFullError, match=r"step-00000003: no space left: 0\.0 MB needed, .* MB free"
            ) as caught:
                save(run, 3)
        assert caught.value.code == Exit.RESOURCES
        assert names(run) == before
        newest, problems = newest_checkpoint(run)
        assert newest is not None
        assert same(newest, 2)
        assert problems == []
    assert same(read_checkpoint(save(run, 3)), 3)


def test_a_save_that_failed_after_its_rename_is_completed_by_the_next_try(run, monkeypatch):
    with monkeypatch.context() as patch:
        calls, real = itertools.count(1), os.fsync
        patch.setattr(os, "fsync", lambda fd: real(fd) if next(calls) < 6 else os.write(-1, b""))
        with pytest.raises(ResourceError, match="step-00000003: cannot be written"):
            save(run, 3)
    assert same(read_checkpoint(save(run, 3)), 3)
    assert names(run) == ["ckpt", "ckpt/step-00000002", "ckpt/step-00000003"]


def test_the_file_size_limit_counts_as_a_full_disk(run):
    if (child := os.fork()) == 0:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            save(run, 3)
        except DiskFullError as error:
            code = int(error.code)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == Exit.RESOURCES
    assert names(run) == ["ckpt", "ckpt/step-00000001", "ckpt/step-00000002"]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or not mount:
        pytest.skip("mounting a tmpfs takes root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this system does not let us mount a tmpfs")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_really_full_disk(small_disk):
    parts = content(1)
    parts["weights"]["large"] = torch.zeros(100_000)
    for step in (1, 2):
        save_checkpoint(small_disk, step, **parts)
    with pytest.raises(DiskFullError, match=r"0\.4 MB needed, 0\.\d MB free"):
        save_checkpoint(small_disk, 3, **parts)
    assert names(small_disk) == ["ckpt", "ckpt/step-00000001", "ckpt/step-00000002"]
    assert read_checkpoint(small_disk / "ckpt/step-00000002").step == 2


# -------------------------------------------------------------------------------------------------------- damage, R16


def header_length(file: Path) -> int:
    data = file.read_bytes()
    return 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_byte_is_noticed(run, name):
    chance = random.Random(name)
    file = run / "ckpt/step-00000002" / name
    data = file.read_bytes()
    places = [*range(header_length(file)), *(chance.randrange(len(data)) for _ in range(500 * MORE))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            found = read_checkpoint(file.parent)
        except ModelError:
            continue
        else:  # state.json is sealed by what it says: another kind of white space says the same
            assert name == "state.json"
            assert same(found, 2)
            assert json.loads(damaged) == json.loads(data)


def test_every_truncation_is_noticed(run):
    for name in NAMES:
        file = run / "ckpt/step-00000002" / name
        data = file.read_bytes()
        for length in random.Random(name).sample(range(len(data) - 1), 50):
            file.write_bytes(data[:length])
            with pytest.raises(ModelError, match=name):
                read_checkpoint(file.parent)
        file.write_bytes(data + b"\0")
        with pytest.raises(ModelError, match=name):
            read_checkpoint(file.parent)
        file.unlink()
        with pytest.raises(ModelError, match=f"{name}: is missing"):
            read_checkpoint(file.parent)
        file.write_bytes(data)
    assert same(read_checkpoint(run / "ckpt/step-00000002"), 2)


@pytest.mark.parametrize("swapped", [c for n in (1, 2, 3) for c in itertools.combinations(NAMES, n)])
def test_files_of_another_checkpoint_are_noticed(run, swapped):
    one, two = run / "ckpt/step-00000001", run / "ckpt/step-00000002"
    for name in swapped:
        shutil.copy(one / name, two / name)
    if all((one / n).read_bytes() == (two / n).read_bytes() for n in NAMES if n not in swapped):
        pytest.skip("nothing differs")
    with pytest.raises(ModelError):
        read_checkpoint(two)


def test_a_renamed_checkpoint_is_noticed_in_a_run_and_welcome_elsewhere(run, tmp_path):
    shutil.copytree(run / "ckpt/step-00000002", run / "ckpt/step-00000009")
    with pytest.raises(ModelError, match="says step 2; the directory was renamed"):
        read_checkpoint(run / "ckpt/step-00000009")
    shutil.copytree(run / "ckpt/step-00000002", tmp_path / "best")
    assert same(read_checkpoint(tmp_path / "best"), 2)


@pytest.mark.parametrize("name", ["model.json", "state.json"])
@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (2, "from a newer FlexVAE; this one reads format 1"),
        (0, "no format version"),
        ("1", "no format version"),
        (True, "no"),
    ],
)
def test_other_format_versions_are_named(run, name, version, reason):
    reseal(run / "ckpt/step-00000002" / name, format=version)
    if name == "model.json":
        with pytest.raises(ModelError, match=reason):
            read_model(run / "ckpt/step-00000002")
    else:
        with pytest.raises(ModelError, match=reason):
            read_checkpoint(run / "ckpt/step-00000002")


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "2"},
        {"step": None},
        {"files": None},
        {"files": {}},
        {"files": {"../../secret": {"sha256": "0", "bytes": 1}}},
        {"files": dict.fromkeys(NAMES[:3], None)},
        {"files": dict.fromkeys(NAMES[:3], "0")},
        {"files": {n: {"sha256": 5} for n in NAMES[:3]}},
    ],
)
def test_well_sealed_nonsense_is_refused(run, changes):
    reseal(run / "ckpt/step-00000002/state.json", **changes)
    with pytest.raises(ModelError):
        read_checkpoint(run / "ckpt/step-00000002")


def test_resuming_passes_over_damage_and_puts_it_aside(run):
    save(run, 3, keep_last=3)
    for step in (2, 3):
        file = run / f"ckpt/step-{step:08d}/training.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
    newest, problems = newest_checkpoint(run)
    assert newest is not None
    assert same(newest, 1)
    assert [p.where for p in problems] == [str(run / f"ckpt/step-{s:08d}/training.safetensors") for s in (3, 2)]
    assert resume_checkpoint(run) == (newest, problems)
    assert newest_checkpoint(run) == (newest, [])
    save(run, 4)
    assert names(run) == [
        "ckpt",
        *(f"ckpt/{n}" for n in ("damaged-step-00000002", "damaged-step-00000003", "step-00000001", "step-00000004")),
    ]


def test_resuming_where_nothing_is_whole_is_refused_and_leaves_all_in_place(run):
    for step in (1, 2):
        (run / f"ckpt/step-{step:08d}/state.json").unlink()
    with pytest.raises(ModelError, match="no checkpoint is whole") as caught:
        resume_checkpoint(run)
    assert len(caught.value.problems) == 3
    assert names(run) == ["ckpt", "ckpt/step-00000001", "ckpt/step-00000002"]
