"""Processes that meet: what they agree on, and what becomes of the others when one is gone."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from processes import ranks

from flexvae_cli.engine.device import device_at
from flexvae_cli.engine.distributed import World, join
from flexvae_cli.engine.interrupt import Interrupt
from flexvae_cli.engine.place import Place
from flexvae_cli.errors import UsageError

MEET = """
import json, math, os, signal, sys, time
import torch
from torch import nn
from flexvae_cli.engine.agreement import require_agreement
from flexvae_cli.engine.distributed import LostError, join
from flexvae_cli.engine.place import find_place
from flexvae_cli.errors import UsageError
place = find_place(os.environ)
world = join(place, torch.device("cpu"), patience=60)
rank = world.rank
found = {}
"""


def told(code: str, size: int = 2) -> list[dict]:
    """What each process that meets the others and runs `code` has found."""
    with ranks(["-c", MEET + code + "\nworld.leave()\nprint(json.dumps(found))"], size=size) as started:
        ended = [process.communicate(timeout=120) for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(err for _, err in ended)
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


def test_what_processes_agree_on():
    first, second = told("""
found["greatest"] = world.greatest(rank, 5 - rank, -3)
found["each"] = world.from_each({"rank": rank, "text": "ü" * rank, "inf": math.inf})
found["first"] = world.from_first([rank, "n\\u00e4her"])
found["nothing"] = world.from_each([])
values = {"loss": torch.tensor(1.5 + rank), "kld": torch.tensor(0.25)}
found["sums"] = {k: v.item() for k, v in world.sum_values(values).items()}
tail = values if rank == 0 else {}
found["tail"] = {k: v.item() for k, v in world.sum_values(tail, idle=True).items()}

torch.manual_seed(rank)
net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(1, 1))
net[0].to(memory_format=torch.channels_last)
net[2].weight.requires_grad_(False)
world.share(net.state_dict().values())
found["weights"] = [v.double().sum().item() for v in net.state_dict().values()]
for parameter in net[0].parameters():
    parameter.grad = torch.full_like(parameter, 1.0 + rank)
if rank == 0:
    net[1].weight.grad = torch.ones(2)
world.sum_gradients(net.parameters())
found["gradients"] = {k: p.grad.unique().tolist() for k, p in net.named_parameters() if p.grad is not None}

net[1].running_mean.copy_(torch.tensor([1.0 + rank, 1 / 3]))
net[1].running_var.copy_(torch.tensor([math.inf, rank]))
net[1].num_batches_tracked += 7 + rank
flag = torch.tensor([rank == 0])
world.mix([*net.buffers(), flag, torch.empty(0)])
found["buffers"] = [b.tolist() for b in [*net.buffers(), flag]]

require_agreement(world, {"the images": 3})
try:
    require_agreement(world, {"the images": 3, "the settings": {"a": rank}})
except UsageError as error:
    found["disagreement"] = str(error)
""")
    assert first == second
    assert first["greatest"] == [1, 5, -3]
    assert first["each"] == [{"rank": r, "text": "ü" * r, "inf": float("inf")} for r in range(2)]
    assert first["first"] == [0, "näher"]
    assert first["nothing"] == [[], []]
    assert first["sums"] == {"loss": 4.0, "kld": 0.5}
    assert first["tail"] == {"loss": 1.5, "kld": 0.25}
    assert first["gradients"] == {"0.weight": [3.0], "0.bias": [3.0], "1.weight": [1.0]}
    third = torch.tensor(1 / 3).item()
    assert first["buffers"] == [[1.5, third], [float("inf"), 0.5], 7, [True]]
    assert first["disagreement"] == (
        "the processes of this run do not agree on the settings: rank 1 differs from rank 0"
    )


def test_a_killed_process_ends_the_others_at_once_and_one_of_them_tells():
    code = (
        MEET
        + """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:
        world.greatest(0)
except LostError as error:
    print(error, world.may_tell(), world.may_tell())
    sys.exit(error.code)
"""
    )
    with ranks(["-c", code]) as (first, second):
        out, err = first.communicate(timeout=60)
        assert second.wait(60) == -signal.SIGKILL
    assert first.returncode == 5, err
    assert out.startswith("another process of this run has ended")
    assert out.endswith("True False\n")


def test_no_thread_of_gloo_outlives_the_meeting_whatever_is_imported_after_it():
    """Else the process could abort at its end; the defaults of torch's module hold the group of its import."""
    threads = '[path.read_text() for path in Path("/proc/self/task").glob("*/comm")]'
    code = f"""
from pathlib import Path
import torch.distributed.nn.functional
world.greatest(0)
before = {threads}
world.leave()
print(json.dumps([before, {threads}]))
"""
    with ranks(["-c", MEET + code]) as started:
        ended = [process.communicate(timeout=60) for process in started]
        assert [process.returncode for process in started] == [0, 0], ended
    for out, _ in ended:
        before, after = (["gloo" in name for name in names] for names in json.loads(out))
        assert (any(before), any(after)) == (True, False)


def test_one_process_alone_needs_nobody():
    world = join(Place(), torch.device("cpu"))
    assert type(world) is World
    assert (world.rank, world.size, world.first) == (0, 1, True)
    values = {"loss": torch.ones(())}
    assert world.sum_values(values) == values
    assert world.greatest(3, -1) == [3, -1]
    assert world.from_each("x") == ["x"]
    assert world.from_first("x") == "x"
    world.sum_gradients([])
    world.leave()


def test_every_process_takes_its_own_gpu(monkeypatch):
    place = Place(rank=5, size=8, local_rank=1)
    assert device_at("cpu", place) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_at("auto", place) == device_at("cuda", place) == torch.device("cuda", 1)
    assert device_at("cuda:1", Place()) == torch.device("cuda", 1)
    with pytest.raises(UsageError, match=r"'cuda:1' is one device, for 8 processes\n.*use cuda: every process"):
        device_at("cuda:1", place)
    with pytest.raises(UsageError, match="'mps' is one device"):
        device_at("mps", place)
    with pytest.raises(UsageError, match="finds no GPU of its own: there are 2"):
        device_at("auto", Place(rank=2, size=8, local_rank=2))


def test_a_signal_that_a_launcher_sends_on_counts_once(monkeypatch):
    raised = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    with Interrupt(echo=60) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        later = time.monotonic() + 61
        monkeypatch.setattr(time, "monotonic", lambda: later)
        os.kill(os.getpid(), signal.SIGINT)
        assert raised == [signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) != interrupt._remember
