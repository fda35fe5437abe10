"""What training choices give in equal time: `configs/sharper.toml` against `configs/quickstart.toml`.

    python benchmarks/quality.py [SEED ...]

Both keep a twelfth of the numbers and see the same photographs. They are trained side by side, each with one thread on
a core of its own, the cores swapped from seed to seed, so that whatever else the machine does slows both alike. The
plain one is given as many steps as it can do in the other's time: the pace of both is measured first, side by side as
well, and the section that is written says what both took. Linux, two cores, about 40 minutes.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from report import write_section

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
FLEXVAE = str(Path(sys.executable).with_name("flexvae"))
PLAIN, OURS = "quickstart", "sharper"
HEAD = ("| seed | config | steps | time | PSNR | SSIM |", "| --- | --- | --- | --- | --- | --- |")
SPARE = 1.1
"""The plain one's time over the other's that is aimed at: what is uncertain about the pace goes to the plain one."""


class Result(NamedTuple):
    """One run: its steps, seconds of the whole `train` command, and the scores of every photograph by name."""

    steps: int
    seconds: float
    psnr: dict[str, float]
    ssim: dict[str, float]


def steps_of(config: str) -> int:
    """The steps that a config asks for."""
    from flexvae_cli.config import load_config

    steps = load_config(ROOT / f"configs/{config}.toml").settings.train.max_steps
    assert steps is not None
    return steps


def train(config: str, core: int, run: Path, steps: int, **settings: int) -> float:
    """Train a config for some steps with one thread on a core; the seconds that the whole command took."""
    command = [FLEXVAE, "--quiet", "train", "--config", str(ROOT / f"configs/{config}.toml")]
    for key, value in {"run_dir": run, "max_steps": steps, **settings}.items():
        command += ["--set", f"train.{key}={value}"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    os.sched_setaffinity(process.pid, {core})
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begin


def pace(config: str, core: int, folder: Path) -> list[float]:
    """When a short run had done every twentieth step, but for the first hundred, as seconds of the clock."""
    run = folder / f"pace-{config}-{core}"
    train(config, core, run, 600, log_every=20, validate_every=600, preview_every=600)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["time"] for line in lines if line["kind"] == "train" and line["step"] >= 100]


def steps_for_one(plain: list[float], ours: list[float]) -> float:
    """How many steps the plain one does while the other does one, in the time in which both were running."""
    begin, end = max(plain[0], ours[0]), min(plain[-1], ours[-1])
    done = [sum(begin <= t <= end for t in times) for times in (plain, ours)]
    return done[0] / done[1]


def result(config: str, core: int, folder: Path, seed: int, steps: int) -> Result:
    """Train a config with a seed, and measure it on photographs that it has not seen."""
    run, out = folder / f"{config}-{seed}", folder / f"{config}-{seed}.json"
    seconds = train(config, core, run, steps, seed=seed, validate_every=steps, preview_every=steps)
    subprocess.run([FLEXVAE, "--quiet", "eval", str(run), "builtin:scenery/val", "--output", str(out)], check=True)
    images = json.loads(out.read_text())["images"]
    return Result(steps, seconds, {i["name"]: i["psnr"] for i in images}, {i["name"]: i["ssim"] for i in images})


def side_by_side(one: Callable[[], T], other: Callable[[], T]) -> tuple[T, T]:
    """Both at once, each in a thread that waits for its process."""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(one), pool.submit(other)
        return first.result(), second.result()


def gain(a: list[Result], b: list[Result], key: str) -> str:
    """The mean difference over photographs, each a mean over seeds, with its paired bootstrap interval."""
    from flexvae_cli.engine.evaluation.intervals import bootstrap_interval, signed_rank_p

    def mean(results: list[Result], name: str) -> float:
        return statistics.mean(getattr(result, key)[name] for result in results)

    differences = [mean(b, name) - mean(a, name) for name in getattr(a[0], key)]
    interval = bootstrap_interval(differences)
    assert interval is not None
    digits = 2 if key == "psnr" else 4
    low, high = (f"{end:+.{digits}f}" for end in interval)
    text = f"{statistics.mean(differences):+.{digits}f}, 95 % interval {low} to {high}"
    return (
        f"{text} (paired bootstrap over {len(differences)} photographs), Wilcoxon p = {signed_rank_p(differences):.2g}"
    )


def spread(results: list[Result], key: str) -> str:
    """The smallest and the largest mean over seeds."""
    means = [statistics.mean(getattr(result, key).values()) for result in results]
    digits = 2 if key == "psnr" else 4
    return f"{min(means):.{digits}f} to {max(means):.{digits}f}"


def row(seed: int, config: str, found: Result) -> str:
    psnr, ssim = statistics.mean(found.psnr.values()), statistics.mean(found.ssim.values())
    return f"| {seed} | `{config}.toml` | {found.steps:,} | {found.seconds:.0f} s | {psnr:.2f} dB | {ssim:.4f} |"


def main(seeds: list[int]) -> None:
    plain: list[Result] = []
    ours: list[Result] = []
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paces = [side_by_side(partial(pace, PLAIN, c, folder), partial(pace, OURS, 1 - c, folder)) for c in (0, 1)]
        ratio = statistics.mean(steps_for_one(a, b) for a, b in paces)
        steps = steps_of(OURS)
        more = math.ceil(SPARE * ratio * steps / 100) * 100
        for seed in seeds:
            core = seed % 2
            a, b = side_by_side(
                partial(result, PLAIN, core, folder, seed, more), partial(result, OURS, 1 - core, folder, seed, steps)
            )
            plain.append(a)
            ours.append(b)
            rows += [row(seed, PLAIN, a), row(seed, OURS, b)]
    times = statistics.median(b.seconds / a.seconds for a, b in zip(plain, ours, strict=True))
    table = "\n".join((*HEAD, *rows))
    body = (
        f"`configs/{OURS}.toml` against `configs/{PLAIN}.toml`, ten whole validation photographs of 512x256 pixels, "
        "posterior means, both a twelfth of the numbers. Trained side by side, each with one thread on a core of its "
        f"own; the plain one for as many steps as it does in the other's time. The time is that of the whole command: "
        f"the second took {times:.2f} of the first's (median over seeds).\n\n"
        f"{table}\n\n"
        f"PSNR {gain(plain, ours, 'psnr')}; SSIM {gain(plain, ours, 'ssim')}. Over the seeds the plain one reached "
        f"{spread(plain, 'psnr')} dB and {spread(plain, 'ssim')}, the other {spread(ours, 'psnr')} dB and "
        f"{spread(ours, 'ssim')}."
    )
    write_section("Quality in equal time", body)


if __name__ == "__main__":
    main([int(s) for s in sys.argv[1:]] or [0, 1, 2])
