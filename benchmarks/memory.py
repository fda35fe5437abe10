"""What `flexvae mem` predicts against what is taken: tensors and resident memory on a CPU, torch's allocator on CUDA.

    python benchmarks/memory.py [--quick]

Every measured cell is a process of its own. On a CPU its tensors are what torch's profiler records of the allocator.
Where there is no CUDA GPU the rows for it are predicted for an H100 and say so. Bytes are counted, not seconds, so
other work on the machine makes no difference, but to the last table: how long a prediction takes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from predicting import time_section
from report import write_section

ROOT = Path(__file__).parents[1]
MIB = 2**20
GPU = "h100-80"
GAPS = 0.04
"""Of tensors: gaps in the heap, at most, as measured on steps of the seed's net at 256x256 and 128x128."""


class Cell(NamedTuple):
    """A shipped config, what is changed of it, and the samples of a micro-batch."""

    config: str
    changes: tuple[str, ...]
    batch: int

    def loaded(self) -> Any:
        from flexvae_cli.config import load_config

        # the default betas are accepted by every optimizer, and none of its memory depends on them
        fixed = ("data.source=builtin:scenery", "data.validation=0", "optimizer.betas=[0.9, 0.999]")
        return load_config(ROOT / f"configs/{self.config}.toml", [*fixed, *self.changes])

    @property
    def title(self) -> str:
        said = [change.split(".", 1)[1] for change in self.changes if not change.startswith(("data.", "train.device"))]
        return ", ".join((self.config, *said))


def cpu_cells() -> Iterator[Cell]:
    changes = [
        (),
        ("train.activation_checkpointing=blocks",),
        ("ema.decay=0.99",),
        ("optimizer.name=sgd",),
        ("train.accumulate=2",),
        ("loss.sparse_metrics=true",),
        ("train.allocator=system",),
    ]
    sizes = {"quickstart": "3x64x64", "seed": "3x64x64"}
    for (config, size), batch in product(sizes.items(), (2, 6)):
        few = changes if config == "quickstart" else [*changes[:3], changes[-1]]
        for change in few:
            yield Cell(config, (f"data.input={size}", "train.device=cpu", "train.precision=fp32", *change), batch)


def cuda_cells() -> Iterator[Cell]:
    size = "data.input=3x256x256"
    for precision, layout, again, batch in product(
        ("fp32", "bf16", "fp16"), ("contiguous", "channels-last"), ("off", "blocks"), (2, 8)
    ):
        keys = (f"train.precision={precision}", f"train.layout={layout}", f"train.activation_checkpointing={again}")
        yield Cell("seed", (size, *keys), batch)
    for extra, batch in product(("train.norm_dtype=input", "optimizer.name=sgd", "ema.decay=0.99"), (2, 8)):
        yield Cell("seed", (size, "train.precision=bf16", extra), batch)


# ------------------------------------------------------------------------------------------------------------- a CPU


class OnCpu(NamedTuple):
    """Bytes of one cell: predicted and recorded tensors, and the most that was resident."""

    cell: Cell
    predicted: int
    recorded: int
    resident: int
    parameters: int
    others: dict[str, int]

    @property
    def net(self) -> tuple[str, bool]:
        """The net, and whether the allocator keeps what is freed, which is the default."""
        return self.cell.config, "train.allocator=system" not in self.cell.changes


def on_cpu(cell: Cell) -> OnCpu:
    from flexvae_cli.engine.memory.child import Request, run_trial
    from flexvae_cli.engine.memory.dry import dry_step
    from flexvae_cli.plan import make_plan

    config = cell.loaded()
    plan = make_plan(config)
    trial = run_trial(Request(config.document, str(config.path), cell.batch, detailed=True))
    predicted = dry_step(plan, cell.batch).peak.bytes
    return OnCpu(cell, predicted, trial.tensors, trial.peak, plan.parameters, others(plan, cell.batch))


def others(plan: Any, batch: int) -> dict[str, int]:
    """What other tools say of the same step, where they are there; accelerate's is its rule: 16 bytes a parameter."""
    return {"accelerate's rule": 16 * plan.parameters, **mem_tracker(plan, batch), **torchinfo_of(plan, batch)}


def torchinfo_of(plan: Any, batch: int) -> dict[str, int]:
    try:
        from torchinfo import summary
    except ImportError:
        return {}
    from flexvae_cli.engine.build import build_vae

    found = summary(build_vae(plan.net), (batch, *plan.net.shape), verbose=0)
    return {"torchinfo": found.total_input + found.total_output_bytes + found.total_param_bytes}


def mem_tracker(plan: Any, batch: int) -> dict[str, int]:
    """torch's own tracker over two real steps."""
    import torch

    try:
        from torch.distributed._tools.mem_tracker import MemTracker
    except ImportError:
        return {}
    from flexvae_cli.engine.build import build_vae
    from flexvae_cli.engine.learner import Learner

    learner = Learner(plan, build_vae(plan.net, logits=plan.output == "logits"), max_steps=3)
    samples = torch.zeros(plan.settings.train.accumulate, batch, *plan.net.shape)
    tracker = MemTracker()
    tracker.track_external(learner.vae, learner.optimization.optimizer, samples)
    try:
        with tracker:
            for step in range(2):
                learner.step(step, samples.unbind())
                tracker.reset_mod_stats()
    except NotImplementedError:  # it follows a module through one call a step: no accumulation
        return {}
    return {"MemTracker": tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]}


def error(said: int, truth: int) -> float:
    return said / truth - 1


def cpu_section(cells: Iterable[Cell]) -> str:
    found = [on_cpu(cell) for cell in cells]
    names = list(dict.fromkeys(name for each in found for name in each.others))
    base = {  # what is no tensor, by the step with the fewest of them
        net: min((f for f in found if f.net == net), key=lambda f: f.recorded) for net in {f.net for f in found}
    }
    rows, worst = [], []
    residents = dict[bool, list[float]]()
    for each in found:
        least = base[each.net]
        resident = round(least.resident + (1 + GAPS) * (each.predicted - least.recorded))
        said = [f"{error(each.others[name], each.recorded):+.0%}" if name in each.others else "" for name in names]
        rows.append(
            f"| {each.cell.title} | {each.cell.batch} | {each.predicted / MIB:,.1f} | {each.recorded / MIB:,.1f} | "
            f"{error(each.predicted, each.recorded):+.2%} | {error(resident, each.resident):+.1%} | "
            + " | ".join(said)
            + " |"
        )
        if each is not least:
            residents.setdefault(each.net[1], []).append(abs(error(resident, each.resident)))
        worst.append(abs(error(each.predicted, each.recorded)))
    close = sum(abs(f.predicted - f.recorded) <= max(0.005 * f.recorded, MIB) for f in found)
    head = f"| step | batch | predicted MiB | recorded MiB | error | of resident | {' | '.join(names)} |\n"
    line = "| --- |" + " ---: |" * (5 + len(names)) + "\n"
    return (
        f"Tensors of a training step on a CPU, {len(found)} steps: the median error is "
        f"{statistics.median(worst):.2%}, the largest {max(worst):.2%}; {close} are within 0.5 % or 1 MiB, "
        f"whichever is more. *Recorded* is what torch's profiler counts. "
        f"*Of resident* is the error for the whole process: what is no tensor is taken from the smallest step of the "
        f"same net under the same allocator, and {GAPS:.0%} of the tensors beyond that one's are added for gaps. "
        f"{told_of(residents)}. The last columns are the errors of other tools, where they are installed.\n\n"
        + head
        + line
        + "\n".join(rows)
    )


def told_of(residents: dict[bool, list[float]]) -> str:
    """How far off resident memory is, by whether the allocator keeps what is freed; smallest steps do not count."""
    allocators = {True: "an allocator that keeps what is freed", False: "the system's"}
    each = [
        f"with {allocators[keeps]} the median is {statistics.median(errors):.1%} and the largest {max(errors):.1%}"
        for keeps, errors in sorted(residents.items(), reverse=True)
    ]
    return "; ".join(each)[:1].upper() + "; ".join(each)[1:]


# ------------------------------------------------------------------------------------------------------------- CUDA


def predicted_on(gpu: Any, cell: Cell) -> dict[str, int]:
    """Bytes requested, allocated and reserved, with the allocator that training has."""
    from flexvae_cli.engine.memory.allocator_settings import settings_of_training
    from flexvae_cli.engine.memory.following import Followed
    from flexvae_cli.engine.memory.forecast import Question

    config = cell.loaded()
    allocator = settings_of_training(os.environ, keep=config.settings.train.allocator == "keep")
    followed = Followed(Question(config.document, str(config.path), gpu, cell.batch, gpu.total, **allocator))
    whole = followed.replayed(cell.batch)
    return {
        "requested": followed.at(cell.batch).peak.bytes,
        "allocated": whole.allocated,
        "reserved": whole.reserved,
    }


def measured_on_cuda(cell: Cell) -> dict[str, int]:
    """The same of real steps, in a process of its own."""
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def take_steps(cell: Cell) -> None:
    """What `--cell` does: two real steps on the first GPU, as `flexvae train` takes them, and what was counted."""
    import io

    import torch

    from flexvae_cli.engine.device import settle
    from flexvae_cli.engine.memory.trial import Workload
    from flexvae_cli.plan import make_plan

    plan, device = make_plan(cell.loaded()), torch.device("cuda", 0)
    settle(plan.settings.train.allocator)  # before the GPU's first use
    Workload(plan, cell.batch, device, io.StringIO()).two_steps(io.StringIO())
    torch.cuda.synchronize(device)
    stats = torch.cuda.memory_stats(device)
    keys = {"requested": "requested_bytes", "allocated": "allocated_bytes", "reserved": "reserved_bytes"}
    print(json.dumps({name: stats[f"{key}.all.peak"] for name, key in keys.items()}))


def cuda_section(cells: Iterable[Cell]) -> str:
    import torch

    from flexvae_cli.engine.memory.devices import find_gpu

    there = torch.cuda.is_available()
    if there:
        from flexvae_cli.engine.memory.here import gpu_here

        gpu = replace(gpu_here(), name=torch.cuda.get_device_name(0))
    else:
        gpu = find_gpu(GPU)
    rows, errors = [], dict[str, list[float]]()
    for cell in cells:
        said = predicted_on(gpu, cell)
        found = measured_on_cuda(cell) if there else {}
        columns = []
        for name, count in said.items():
            columns.append(f"{count / MIB:,.0f}")
            if there:
                errors.setdefault(name, []).append(abs(error(count, found[name])))
                columns[-1] += f" ({error(count, found[name]):+.1%})"
        rows.append(f"| {cell.title} | {cell.batch} | {' | '.join(columns)} |")
    told = "; ".join(f"{name}: median {statistics.median(e):.1%}, largest {max(e):.1%}" for name, e in errors.items())
    note = f"In brackets the error against real steps. {told}." if there else "**Predicted, not measured.**"
    head = "| step | batch | requested MiB | allocated MiB | reserved MiB |\n| --- | ---: | ---: | ---: | ---: |\n"
    return f"On {gpu.name}, two training steps at 3x256x256. {note}\n\n" + head + "\n".join(rows)


def main(quick: bool) -> None:
    cpu, cuda = list(cpu_cells()), list(cuda_cells())
    parts = (cpu_section(cpu[:2] if quick else cpu), cuda_section(cuda[:2] if quick else cuda))
    body = "\n\n".join((*parts, time_section(1 if quick else 3)))
    if quick:
        print(body)
    else:
        write_section("Memory", body)


if __name__ == "__main__":
    if "--cell" in sys.argv:
        config, changes, batch = json.loads(sys.argv[-1])
        take_steps(Cell(config, tuple(changes), batch))
    else:
        main("--quick" in sys.argv)
