"""One trial, a program of its own: build the net, take two training steps, tell what they needed.

stdin brings a request, a line of JSON, and stays open for as long as the asking process lives. Facts go to stdout as
they become known, a line of JSON each, so that a trial that is killed has told what it knew; see `child.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.profiler import ProfilerActivity, profile

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.device import choose_device, is_out_of_memory, settle
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.memory.machine import available_memory, prefer_as_victim, process_memory, watched
from flexvae_cli.engine.memory.phases import hardest
from flexvae_cli.errors import FlexVAEError, UsageError
from flexvae_cli.plan import Plan, make_plan


class Workload:
    """A net with all that its training step needs, and random samples of the right shape.

    Args:
        batch: samples of a micro-batch.
        facts: what becomes known is written here.
    """

    def __init__(self, plan: Plan, batch: int, device: torch.device, facts: TextIO) -> None:
        self.settings = plan.settings
        self.vae = build_vae(plan.net, logits=plan.output == "logits", device=device).train()
        hard = hardest(plan)
        self.first = hard.step
        self.learner = Learner(plan, self.vae, max_steps=self.first + 3)
        nets = self.learner.modules()
        trained = [p.numel() for net in nets for p in net.parameters() if p.requires_grad]
        tell(facts, parameters=sum(trained), parameter_tensors=len(trained), note=hard.note)
        shape = (self.settings.train.accumulate, batch, *hard.shape)
        self.samples = torch.rand(shape, device=device).mul_(2).sub_(1)  # (accumulate, b, c, *space) in [-1, 1]

    def step(self, step: int) -> None:
        """A training step. All micro-batches are held and two computed: a third would need no more than the second."""
        self.learner.step(self.first + step, self.samples[:2].unbind())

    def two_steps(self, facts: TextIO) -> None:
        """The first makes the optimizer's state, the second needs it."""
        self.step(0)
        self.step(1)
        tell(facts, training=sum(tensor.nbytes for tensor in self.learner.tensors().values()))

    def cpu_tensors(self) -> int:
        """Bytes of all tensors at the peak of one more step, as torch's profiler counts them."""
        self.learner.optimization.zero_grad()
        held = [*self.vae.state_dict().values(), *self.learner.tensors().values(), self.samples]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.step(2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiled.export_chrome_trace(str(path))
            events = json.loads(path.read_bytes())["traceEvents"]
        allocated = max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")
        return allocated + sum(tensor.nbytes for tensor in held)


def measure(request: dict[str, Any], facts: TextIO) -> None:
    """Do what a request asks for, see `child.Request`."""
    settings = Settings.model_validate(request["document"])
    plan = make_plan(Config(settings, Path(request["config"]), request["document"]))
    device = choose_device(settings.train.device)
    if device.type == "cpu":
        _measure_cpu(plan, request, facts)
    elif device.type == "cuda":
        _measure_cuda(plan, request, torch.device("cuda", device.index or 0), facts)
    else:
        raise UsageError(f"mem measures on a CPU or on CUDA, not on '{device}'", hint="use --device cpu")


def _measure_cpu(plan: Plan, request: dict[str, Any], facts: TextIO) -> None:
    prefer_as_victim()
    settle(plan.settings.train.allocator)
    available = available_memory() + process_memory("RssAnon")
    tell(facts, device="cpu", available=available)
    with watched(request["limit"] or available, lambda: _give_up(facts)):
        work = Workload(plan, request["batch"], torch.device("cpu"), facts)
        work.two_steps(facts)
    tell(facts, outcome="done", peak=process_memory("VmHWM"))
    if request["detailed"]:
        tell(facts, tensors=work.cpu_tensors())


def _measure_cuda(plan: Plan, request: dict[str, Any], device: torch.device, facts: TextIO) -> None:
    settle(plan.settings.train.allocator)
    free, total = torch.cuda.mem_get_info(device)
    tell(facts, device=str(device), available=free)
    if request["limit"]:
        torch.cuda.set_per_process_memory_fraction(min(1.0, request["limit"] / total), device)
    Workload(plan, request["batch"], device, facts).two_steps(facts)
    torch.cuda.synchronize(device)
    peak, tensors = torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)
    tell(facts, outcome="done", peak=peak, tensors=tensors)


def _give_up(facts: TextIO) -> None:
    tell(facts, outcome="memory")
    os._exit(0)


def tell(facts: TextIO, **values: Any) -> None:
    facts.write(json.dumps(values) + "\n")
    facts.flush()


def main(work: Callable[[dict[str, Any], TextIO], None]) -> None:
    """Read a request, do the work, and tell what the user should know of its end."""
    facts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what plugins print is no fact
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        work(request, facts)
    except FlexVAEError as error:
        tell(facts, problems=[asdict(problem) for problem in error.problems], code=error.code)
    except Exception as error:  # the net's layers are strangers' code
        if not is_out_of_memory(error):
            tell(facts, error=f"{type(error).__name__}: {error}")
            raise
        tell(facts, outcome="memory")


def _leave_with_parent() -> None:
    os.read(0, 1)  # returns when the other end of stdin is gone
    os._exit(1)


if __name__ == "__main__":
    main(measure)
