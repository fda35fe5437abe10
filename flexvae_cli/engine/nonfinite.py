"""What is written down of a step whose numbers were not finite, so that it can be taken again."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.files import replace_file, writing
from flexvae_cli.engine.source import Source

FORMAT = 1


def write_report(run_dir: Path, step: int, sampler: MicroBatches, source: Source) -> Path:
    """`nan-step-K.json`: the step, and the images of each of its micro-batches by name.

    Everything else that the step depends on follows from the run: its settings, its seed, a checkpoint before it.
    """
    path = run_dir / f"nan-step-{step:08d}.json"
    content = {
        "format": FORMAT,
        "step": step,
        "parts": sampler.of_all.accumulate,
        "max_steps": sampler.max_steps,
        "micro_batches": names_of(step, sampler, source),
    }
    with writing(path):
        replace_file(path, json.dumps(content, indent=1).encode("utf-8", "backslashreplace") + b"\n")
    return path


def names_of(step: int, sampler: MicroBatches, source: Source) -> list[list[str]]:
    """The images that a step trains on; bad ones among them have had others stand in."""
    sampler = sampler.of_all
    batches = islice(sampler.starting_at(step), len(sampler.step_sizes(step)))
    items = source.training.items
    return [[items[index].name for _, index in batch] for batch in batches]
