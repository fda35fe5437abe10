"""What a process is set up with before it computes: CUDA's allocator, and threads within a container's quota."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learners import plan_for

from flexvae_cli.engine import cores, device, replay
from flexvae_cli.engine.memory.allocator_settings import VARIABLES, prefer_expandable, settings_of_training
from flexvae_cli.errors import UsageError

EXPANDABLE = "expandable_segments:True"


def told(code: str) -> str:
    """What a process prints that is told nothing of memory and threads."""
    rest = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, "FLEXVAE_ALLOCATOR", "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=rest, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


GATHERED = """
import os, sys
from pathlib import Path
import torch
torch.cuda.is_available = lambda: True  # for lack of one
torch.version.cuda = "13.0"
sys.path.insert(0, {tests!r})
from learners import plan_for
from flexvae_cli.engine.starting import gather
gather(plan_for(Path({folder!r}), train={{"allocator": {allocator!r}}}))
assert not torch.cuda.is_initialized()
print(os.environ.get("PYTORCH_ALLOC_CONF"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has segments that grow")
@pytest.mark.parametrize(
    ("allocator", "found"),
    [("keep", EXPANDABLE), ("system", "None")],
)
def test_training_lets_segments_grow_before_a_gpu_is_used(tmp_path: Path, allocator: str, found: str) -> None:
    code = GATHERED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), allocator=allocator)
    assert told(code) == found


def test_without_a_gpu_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device.keep_freed_memory()
    assert not any(name in os.environ for name in VARIABLES)


def test_torch_reads_the_variable_after_its_import() -> None:
    code = (
        "import os, torch\nos.environ['PYTORCH_ALLOC_CONF'] = 'nonsense:1'\n"
        "try:\n    torch._C._accelerator_setAllocatorSettings('expandable_segments:True')\n"
        "except (RuntimeError, ValueError) as error:\n    print('nonsense' in str(error))"
    )
    assert told(code) == "True"


@pytest.mark.parametrize("name", VARIABLES)
def test_what_the_user_says_of_the_allocator_holds(name: str) -> None:
    for value in ("expandable_segments:False", "max_split_size_mb:128", "garbage_collection_threshold:0.8"):
        environment = {name: value}
        assert not prefer_expandable(environment)
        assert environment == {name: value}
    with pytest.raises(UsageError, match="together leak") as caught:
        prefer_expandable({name: "max_split_size_mb:128, expandable_segments: True"})
    assert "FLEXVAE_ALLOCATOR=system" in caught.value.problems[0].hint


def test_a_prediction_has_the_allocator_that_training_has() -> None:
    assert settings_of_training({}, keep=True) == {"allocator": "expandable", "split": None, "notes": ()}
    assert settings_of_training({}, keep=False)["allocator"] == "default"
    assert settings_of_training({"FLEXVAE_ALLOCATOR": "system"}, keep=True)["allocator"] == "default"
    split = settings_of_training({VARIABLES[1]: "max_split_size_mb:64"}, keep=True)
    assert split == {"allocator": "default", "split": 64 << 20, "notes": ()}


def test_a_prediction_notes_what_it_does_not_replay_and_goes_on() -> None:
    value = "roundup_power2_divisions:[256:1,512:2,>:4],expandable_segments:True,pinned_use_background_threads:True"
    found = settings_of_training({VARIABLES[1]: value}, keep=True)
    assert found["allocator"] == "expandable"
    note = f"of {VARIABLES[1]} 'roundup_power2_divisions' and 'pinned_use_background_threads' is not replayed"
    assert found["notes"] == (note,)
    with pytest.raises(UsageError, match="wants True or False"):  # nor would torch take it
        settings_of_training({VARIABLES[0]: "expandable_segments:true"}, keep=True)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of control groups that this process seems to be in, `/job/task` of version 2 and 1."""
    (tmp_path / "cgroup").write_text("4:cpu,cpuacct:/job/task\n0::/job/task\n")
    monkeypatch.setattr(cores, "PROCESS", tmp_path)
    monkeypatch.setattr(cores, "ROOTS", (tmp_path / "2", tmp_path / "1"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    return tmp_path


def test_the_quota_is_the_least_of_all_groups_around(container: Path) -> None:
    assert cores.cpu_quota() is None
    assert cores.cores() == 16
    group(container / "2/job/task", cpu__max="max 100000")
    assert cores.cpu_quota() is None
    group(container / "2/job", cpu__max="350000 100000")
    assert (cores.cpu_quota(), cores.cores()) == (3.5, 4)
    group(container / "1/job/task", **{"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"})
    assert cores.cpu_quota() == 3.5
    group(container / "1/job/task", **{"cpu__cfs_quota_us": "50000", "cpu__cfs_period_us": "100000"})
    assert (cores.cpu_quota(), cores.cores()) == (0.5, 1)


def test_without_a_proc_there_is_no_quota(container: Path) -> None:
    (container / "cgroup").unlink()
    assert cores.cpu_quota() is None


def test_torch_takes_no_more_threads_than_the_quota(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores.settle_threads()
    group(container / "2/job", cpu__max="1600000 100000")
    cores.settle_threads()
    assert not taken  # torch's own number stays
    group(container / "2/job", cpu__max="250000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    cores.settle_threads()
    assert not taken
    monkeypatch.delenv("OMP_NUM_THREADS")
    device.settle("system")
    assert taken == [3]


def test_a_step_that_is_taken_once_more_has_the_threads_of_training(
    container: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    group(container / "2/job", cpu__max="250000 100000")
    folder = tmp_path_factory.mktemp("run")
    plan = plan_for(folder, train={"allocator": "system", "device": "cuda:99"})
    with pytest.raises(UsageError, match="'cuda:99' is not on this machine"):  # looked for behind the threads
        replay._trainer(plan, folder, None)
    assert taken == [3]
