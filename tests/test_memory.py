from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexvae_cli.config import Config, load_config
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.device import is_out_of_memory
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.memory import machine
from flexvae_cli.engine.memory.answer import LEAST_TIME, PATIENCE, Answer, answer, fits
from flexvae_cli.engine.memory.child import ADDR_NO_RANDOMIZE, TIME_LIMIT, Request, Trial, _judged, run_trial
from flexvae_cli.engine.memory.closed import States, states_of
from flexvae_cli.engine.memory.search import MOST, PRECISION, Found, largest_batch
from flexvae_cli.errors import DataError, Exit, FlexVAEError, ResourceError, UsageError
from flexvae_cli.plan import make_plan

MIB = 2**20
ENCODER = ["C2d_3_32_3_1_1", "VAERB_32_32", "C2d_32_8_4_4"]
DECODER = ["C2d_4_32_3_1_1", "UpS_4", "VAERB_32_32", "C2d_32_3_3_1_1"]
PLUGIN = '''
import os, signal
from flexvae_cli.api import hookimpl, layer, same
FLEXVAE_API = 1

@layer("Boom", trace=same)
def boom():
    """Fails, as a layer with a mistake does."""
    return _module(lambda: print("here I am") or 1 / 0)

@layer("Die", trace=same)
def die():
    """Ends as a process does that the system kills for its memory."""
    return _module(lambda: os.kill(os.getpid(), signal.SIGKILL))

def _module(act):
    from torch import nn
    class Act(nn.Module):
        def forward(self, x):
            act()
            return x
    return Act()

@hookimpl
def flexvae_layers():
    return [boom, die]
'''


def write_config(folder: Path, encoder: list[str]) -> Config:
    (folder / "encoder.json").write_text(json.dumps(encoder))
    (folder / "decoder.json").write_text(json.dumps(DECODER))
    (folder / "flexvae.toml").write_text(
        "[model]\nencoder = 'encoder.json'\ndecoder = 'decoder.json'\n"
        "[data]\nsource = 'photos'\ninput = '3x64x64'\n[train]\nrun_dir = 'run'\nmax_steps = 1\n"
    )
    return load_config(folder / "flexvae.toml")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_config(tmp_path_factory.mktemp("net"), ENCODER)


@pytest.fixture(scope="module")
def measured(config: Config) -> Trial:
    """A trial without a limit at batch 4."""
    return run_trial(Request(config.document, "flexvae.toml", 4, detailed=True))


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that the child process finds; it was not there when this process looked for plugins."""
    (tmp_path / "unruly.py").write_text(PLUGIN)
    information = tmp_path / "unruly-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: unruly\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[flexvae]\nunruly = unruly\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    before = children_of(os.getpid())
    yield
    assert children_of(os.getpid()) <= before


def children_of(parent: int) -> set[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == parent:
            found.add(int(stat.parent.name))
    return found


def test_the_closed_form_is_the_sum_over_the_module(config: Config, measured: Trial) -> None:
    plan = make_plan(config)
    vae = build_vae(plan.net)
    learner = Learner(plan, vae, max_steps=1)
    learner.step(0, [torch.zeros(1, 3, 64, 64)])
    states = states_of(measured.parameters, measured.parameter_tensors)
    assert measured.parameters == plan.parameters
    assert states.parameters == sum(p.nbytes for p in vae.parameters())
    assert states.gradients == sum(p.grad.nbytes for p in vae.parameters() if p.grad is not None)
    assert states.optimizer == sum(t.nbytes for t in learner.optimization.tensors().values())
    assert states.total == states.parameters + states.gradients + states.optimizer


def test_tensors_at_the_peak_hold_what_the_layers_give(config: Config, measured: Trial) -> None:
    plan = make_plan(config)
    rows = (row for part in (plan.encoder, plan.decoder) for row in part.rows)
    outputs = sum(4 * 4 * row.gives[0] * row.gives[1] * row.gives[2] for row in rows)
    states = states_of(measured.parameters, measured.parameter_tensors).total
    assert measured.device == "cpu"
    assert outputs < measured.tensors - states < 6 * outputs  # a residual block alone keeps seven tensors
    assert measured.tensors < measured.peak < measured.available


def test_a_larger_batch_needs_in_proportion_more(config: Config, measured: Trial) -> None:
    twice = run_trial(Request(config.document, "flexvae.toml", 8, detailed=True))
    states = states_of(measured.parameters, measured.parameter_tensors).total
    assert twice.tensors - states == pytest.approx(2 * (measured.tensors - states), rel=0.05)
    assert twice.peak > measured.peak


def test_a_limit_ends_the_child_and_nothing_else(config: Config, measured: Trial) -> None:
    ended = run_trial(Request(config.document, "flexvae.toml", 64, limit=measured.peak + 10 * MIB))
    assert ended.outcome == "memory"
    assert not ended.fits(measured.available)


def test_memory_that_torch_is_refused_is_recognised(config: Config) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, before[1]))  # children inherit it
    try:
        ended = run_trial(Request(config.document, "flexvae.toml", 100_000))  # 4.6 GiB of samples
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert ended.outcome == "memory"


def test_another_error_is_no_answer(plugin: None, tmp_path: Path) -> None:
    config = write_config(tmp_path, ["Boom", *ENCODER])
    with pytest.raises(
        FlexVAEError, match="a training step at batch 1 fails: ZeroDivisionError: division by zero"
    ) as info:
        run_trial(Request(config.document, "flexvae.toml", 1))
    assert info.value.code == Exit.UNEXPECTED
    assert "here I am" in str(info.value.__cause__)  # what a layer prints is no fact


def test_a_child_that_the_system_kills_does_not_fit(plugin: None, tmp_path: Path) -> None:
    ended = run_trial(Request(write_config(tmp_path, ["Die", *ENCODER]).document, "flexvae.toml", 1))
    assert (ended.outcome, ended.fits(2**60)) == ("killed", False)
    assert ended.parameters  # it had told so much


def test_a_users_error_in_the_child_is_the_users_error_here(tmp_path: Path) -> None:
    config = write_config(tmp_path, ["Ghost_1"])
    with pytest.raises(UsageError, match=r"(?s)encoder\.json.*Ghost"):
        run_trial(Request(config.document, "flexvae.toml", 1))


class StrayError(FlexVAEError):
    """An error of somebody else's, with no exit code of its own."""


@pytest.mark.parametrize(("code", "kind"), [(Exit.DATA, DataError), (Exit.UNEXPECTED, FlexVAEError)])
def test_the_error_of_a_child_is_the_one_of_its_exit_code(code: Exit, kind: type[FlexVAEError]) -> None:
    problem = {"what": "is wrong", "where": "f", "text": "", "span": [1, 2], "hint": "", "usage": ""}
    with pytest.raises(FlexVAEError, match="f: is wrong") as told:
        _judged(1, 0, {"problems": [problem], "code": int(code)}, "")
    assert type(told.value) is kind


def test_the_same_trial_needs_about_the_same(config: Config, tmp_path: Path) -> None:
    code = (
        "import os; from flexvae_cli.engine.memory.child import _same_addresses as same\n"
        "with same(): os.execvp('cat', ['cat', '/proc/self/personality'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    allowed = int(found, 16) & ADDR_NO_RANDOMIZE
    if not allowed:
        pytest.skip("this system always chooses addresses at random")
    peaks = {run_trial(Request(config.document, "flexvae.toml", 4)).peak for _ in range(3)}
    assert max(peaks) < 1.05 * min(peaks)  # threads still take turns as they like: 3 % was seen


def test_a_trial_takes_no_longer_than_it_may(config: Config) -> None:
    assert run_trial(Request(config.document, "flexvae.toml", 4), time_limit=0.2).outcome == "time"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_child_leaves_with_its_parent(config: Config, number: signal.Signals) -> None:
    request = f"Request({config.document!r}, 'flexvae.toml', 2000)"
    code = f"from flexvae_cli.engine.memory.child import Request, run_trial; run_trial({request})"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        wait_for(lambda: bool(children_of(parent.pid)))
        (child,) = children_of(parent.pid)
        parent.send_signal(number)
        assert parent.wait(60) != 0
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shape '[4]' is invalid for input of size 3"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_out_of_memory_is_recognised_narrowly(error: Exception, out: bool) -> None:
    assert is_out_of_memory(error) is out


def trials_of(peak: Callable[[int], int], memory: int) -> Callable[[int], Trial]:
    """Trials of a made-up net, killed where they need more than `memory`."""
    return lambda n: Trial(n, "done", "cpu", 2**40, peak(n)) if peak(n) <= memory else Trial(n, "memory", "cpu", 2**40)


def is_closed(found: Found, peak: Callable[[int], int], memory: int) -> bool:
    """Whether the answer fits, and what is beyond it does not and is near."""
    high = found.beyond.batch if found.beyond else MOST + 1
    right = found.largest == 0 or peak(found.largest) <= memory
    return right and (high > MOST or peak(high) > memory) and high - found.largest <= max(1, high // PRECISION)


@given(st.integers(0, 10**9), st.integers(1, 10**8), st.integers(1, 10**11), st.integers(1, 512))
def test_the_search_needs_few_trials_where_need_is_affine(base: int, slope: int, memory: int, first: int) -> None:
    def peak(batch: int) -> int:
        return base + slope * batch

    found = largest_batch(trials_of(peak, memory), Trial(first, "done", "cpu", 2**40, peak(first)), memory)
    assert is_closed(found, peak, memory)
    assert len(found.trials) <= 10  # mostly 4; of 60,000 drawn at random the worst took 9


@pytest.mark.parametrize("known", [(40,), (42, 41), (90, 20, 60), (41, 42)])
def test_the_search_goes_on_from_what_is_known(known: tuple[int, ...]) -> None:
    def peak(batch: int) -> int:
        return 900 + 100 * batch

    run = trials_of(peak, 5000)
    found = largest_batch(run, run(8), 5000, known=[run(batch) for batch in known])
    assert found.largest == 41
    assert found.beyond == run(42)
    assert len(found.trials) <= len(known) + 6


@given(
    st.lists(st.tuples(st.integers(1, MOST), st.integers(1, 10**6)), max_size=8), st.integers(1, 10**7), st.booleans()
)
def test_the_search_ends_where_need_jumps(jumps: list[tuple[int, int]], memory: int, done: bool) -> None:
    def peak(batch: int) -> int:
        return sum(height for start, height in jumps if batch >= start)

    first = Trial(8, "done", "cpu", 2**40, peak(8)) if done or peak(8) <= memory else Trial(8, "memory", "cpu")
    found = largest_batch(trials_of(peak, memory), first, memory)
    assert is_closed(found, peak, memory)
    assert len(found.trials) <= 40


def ask(size: int, limit: int | None, seconds: float = TIME_LIMIT) -> Trial:
    """Trials of a made-up net with 900 bytes of its own and 100 per sample, on a device of 5000 bytes."""
    trial = trials_of(lambda n: 900 + 100 * n, limit or 5000)(size)
    return replace(trial, available=5000, parameters=10, parameter_tensors=2)


def with_memory(config: Config, memory: int) -> Config:
    return load_config(config.path, [f"mem.memory={memory}"])


def test_the_answer_fills_what_the_device_has(config: Config) -> None:
    result = answer(config, 8, 10, ask)
    assert (result.memory, result.found.largest, result.one) == (5000, 41, None)
    assert result.states == States(40, 40, 88)
    assert [fits(result, n, ask) for n in (41, 42)] == [True, False]


def test_the_answer_where_one_sample_is_too_much(config: Config) -> None:
    result = answer(with_memory(config, 950), 8, 10, ask)
    assert result.found.largest == 0
    assert result.one is not None
    assert result.one.peak == 1000


def test_more_memory_than_there_is_cannot_be_tried(config: Config) -> None:
    with pytest.raises(ResourceError, match="cannot be tried: cpu has"):
        answer(with_memory(config, 5001), 8, 10, ask)


def test_a_search_among_slow_steps_comes_to_its_end(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 100)  # seconds pass by the hundred
    monkeypatch.setattr("flexvae_cli.engine.memory.answer.time.monotonic", lambda: next(clock))
    allowed = []

    def slow(size: int, limit: int | None, seconds: float = TIME_LIMIT) -> Trial:
        allowed.append(seconds)
        return ask(size, limit) if size <= 30 else Trial(size, "time", "cpu", 5000)

    result = answer(config, 8, 10, slow)
    assert result.found.largest == 30
    assert result.found.beyond == Trial(31, "time", "cpu", 5000)
    assert allowed[:5] == [TIME_LIMIT, PATIENCE - 100, PATIENCE - 200, LEAST_TIME, LEAST_TIME]


def test_a_trial_that_could_tell_nothing_is_an_error(config: Config) -> None:
    with pytest.raises(ResourceError, match=r"before it could measure anything \(killed\)"):
        answer(config, 8, 10, lambda size, limit, seconds=TIME_LIMIT: Trial(size, "killed"))


def test_a_batch_that_the_search_left_open_is_tried(config: Config) -> None:
    states, first = States(0, 0, 0), ask(8, None)
    result = Answer(first, states, 5000, Found(30, ask(50, 5000), (first,)), None)
    assert [fits(result, n, ask) for n in (30, 40, 49, 50)] == [True, True, False, False]


def test_what_took_too_long_is_not_said_to_need_too_much(config: Config) -> None:
    late, first = Trial(50, "time", "cpu", 5000), ask(8, None)
    result = Answer(first, States(0, 0, 0), 10_000, Found(30, late, (first,)), None)
    tried = []

    def patient(size: int, limit: int | None, seconds: float = TIME_LIMIT) -> Trial:
        tried.append((size, limit, seconds))
        return ask(size, limit) if size < 100 else Trial(size, "time", "cpu", 5000)

    assert [fits(result, n, patient) for n in (30, 50, 92)] == [True, True, False]
    assert tried == [(50, 10_000, TIME_LIMIT), (92, 10_000, TIME_LIMIT)]
    with pytest.raises(ResourceError, match=r"whether batch 100 fits is not known: it took longer than 10 minutes"):
        fits(result, 100, patient)


def test_the_state_of_other_optimizers_is_not_guessed(config: Config) -> None:
    def told(*overrides: str) -> int | None:
        return answer(load_config(config.path, overrides), 8, 10, ask).states.optimizer

    assert told() == told("optimizer.name=adam") == 88
    assert told("optimizer.name=sgd") is told("ema.decay=0.9") is None


def test_available_memory_is_the_least_of_machine_and_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "groups" / "job" / "task"
    inner.mkdir(parents=True)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  1000 kB\n")
    (tmp_path / "cgroup").write_text("0::/job/task\n")
    monkeypatch.setattr(machine, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "PROCESS", tmp_path)
    monkeypatch.setattr(machine, "CONTROL_GROUPS", [(tmp_path / "groups", "most", "used", "cache")])
    assert machine.available_memory() == 1_024_000

    def limit(folder: Path, most: str, used: int) -> None:
        (folder / "most").write_text(f"{most}\n")
        (folder / "used").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("cached 7\ncache 100\n")

    limit(inner, "max", 500)
    assert machine.available_memory() == 1_024_000
    limit(inner.parent, "9000", 500)
    assert machine.available_memory() == 8_600  # files of the cache can be dropped
    limit(inner, "300", 500)
    assert machine.available_memory() == 0


def test_a_cpu_is_measured_on_linux_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MACHINE", tmp_path / "meminfo")
    with pytest.raises(UsageError, match="on Linux alone"):
        machine.available_memory()
