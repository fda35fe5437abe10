"""How fast a training step and a forward pass are: FlexVAE against plain PyTorch, and diffusers where it is installed.

    python benchmarks/speed.py [--rounds 3] [--quick] [--original PATH] [--no-growth]

Every contender lives in a process of its own, and they take turns (A B A B ...), so that all of them see the same
machine; the others wait meanwhile. Medians are compared. Nothing else should run. Convolutions alone take their turn as
well: what operations there are to do, at their rate, is the least time that a machine allows. `--original` takes a
checkout of the original project, whose `src/modules.py` has the two blocks; `--quick` shrinks everything, to try the
script.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from contenders import Case, describe
from report import write_section

CONTENDERS = str(Path(__file__).with_name("contenders.py"))
GOALS = {
    ("seed", "forward", "FlexVAE, fp32"): 2.4,
    ("seed", "forward", "FlexVAE, bf16"): 4.5,
    ("seed", "step", "FlexVAE, fp32"): 1.65,
    ("seed", "step", "FlexVAE, bf16"): 3.2,
    ("sd", "step", "FlexVAE"): 1.4,
    ("sd", "encode", "FlexVAE"): 1.4,
    ("sd", "decode", "FlexVAE"): 1.4,
}
"""How many times faster than the first contender it should be: by net, mode and contender."""


@dataclass
class Taken:
    """Seconds of each round, and the operations of one."""

    seconds: list[float]
    operations: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Times = dict[str, Taken]


class Contender:
    """A process that does a case's work when it is asked to."""

    def __init__(self, case: Case) -> None:
        command = [sys.executable, CONTENDERS]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say(describe(case))
        if self._hear() != "ready":
            raise SystemExit(f"no answer from {case}")

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def seconds(self) -> float:
        """One more time."""
        self._say("again")
        return float(self._hear())

    def operations(self) -> float:
        """Of one time: multiplications and additions."""
        self._say("count")
        return float(self._hear())

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compared(cases: dict[str, Case], rounds: int) -> Times:
    """What all cases take, in turn."""
    contenders = {name: Contender(case) for name, case in cases.items()}
    times = {name: Taken([], contender.operations()) for name, contender in contenders.items()}
    for _ in range(rounds):
        for name, contender in contenders.items():
            times[name].seconds.append(contender.seconds())
    for contender in contenders.values():
        contender.leave()
    return times


def against(cases: dict[str, Case], rounds: int) -> str:
    """A table of medians, spreads, how many times faster than the first each is, and how many it could be."""
    first = next(iter(cases))
    bare = {f"alone, {each}": Case("convolutions", mode="forward", precision=each) for each in ("fp32", "bf16")}
    times = compared(cases | bare, rounds)
    rates = {name: times[f"alone, {name}"].operations / times[f"alone, {name}"].median for name in ("fp32", "bf16")}
    rows = []
    for name, case in cases.items():
        each, whole = times[name], times[first].median
        goal = GOALS.get((case.net, case.mode, name)) if case.divisor == 1 else None
        least = each.operations / rates[case.precision]
        low, high = min(each.seconds) * 1e3, max(each.seconds) * 1e3
        rows.append(
            f"| {name} | {each.median * 1e3:.0f} ms | {low:.0f} to {high:.0f} ms "
            f"| {whole / each.median:.2f} | {goal or ''} | {each.operations / 1e9:.0f} | {whole / least:.2f} |"
        )
    head = f"| | median | spread | times {first} | goal | GFLOP | at convolutions' rate |"
    rule = "| --- | --- | --- | --- | --- | --- | --- |"
    reached = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates.items())
    return "\n".join([head, rule, *rows]) + f"\n\nConvolutions alone: {reached}."


def ours(case: Case) -> dict[str, Case]:
    """FlexVAE in the forms that are compared."""
    flexvae = replace(case, who="flexvae")
    return {
        "the same layers, as they are written": replace(flexvae, fuse="off"),
        "FlexVAE, fp32": flexvae,
        "FlexVAE, bf16": replace(flexvae, precision="bf16"),
    }


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The b of seconds = a * size^b, by least squares of the logarithms."""
    x, y = [math.log(n) for n in sizes], [math.log(s) for s in seconds]
    return statistics.linear_regression(x, y).slope


def growth(rounds: int, quick: bool) -> str:
    """How the time of a step grows with each of three sizes, the others being held."""
    base = Case("flexvae", divisor=4, size=32 if quick else 128, batch=1 if quick else 4)
    sides = (32, 64) if quick else (64, 128, 256)
    batches = (1, 2) if quick else (1, 2, 4, 8, 16)
    divisors = (4, 2) if quick else (4, 2, 1)
    series: dict[str, tuple[tuple[int, ...], dict[str, Case]]] = {
        "image size, pixels a side": (sides, {str(n): replace(base, size=n) for n in sides}),
        "batch": (batches, {str(n): replace(base, batch=n) for n in batches}),
        "channels, of the widest layer": (
            tuple(512 // d for d in divisors),
            {str(512 // d): replace(base, divisor=d) for d in divisors},
        ),
    }
    lines = []
    for name, (sizes, cases) in series.items():
        medians = [each.median for each in compared(cases, rounds).values()]
        shown = ", ".join(f"{size}: {m * 1e3:.0f} ms" for size, m in zip(sizes, medians, strict=True))
        lines.append(f"| {name} | {shown} | {exponent(sizes, medians):.2f} |")
    return (
        f"A training step in fp32 at a quarter of the channels, {base.size} pixels a side, batch {base.batch}, but for "
        "what is named; the exponent is fitted.\n\n| of | times | exponent |\n| --- | --- | --- |\n" + "\n".join(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--original", type=Path)
    wanted = parser.parse_args()
    size, small = (32, 32) if wanted.quick else (256, 128)
    whole, quarter = (
        Case("baseline", size=size),
        Case("baseline", divisor=4, size=small, batch=1 if wanted.quick else 8),
    )
    if wanted.quick:
        whole = replace(whole, divisor=4)
    parts: list[str] = []

    def add(text: str, cases: dict[str, Case]) -> None:
        parts.append(f"{text}:\n\n" + against(cases, wanted.rounds))
        print(parts[-1] + "\n", flush=True)  # it takes a while

    for text, case in (
        (f"The seed's nets, one image of {size}x{size}", whole),
        (f"A quarter of their channels, {quarter.batch} images of {small}x{small}", quarter),
    ):
        for mode, called in (("step", "training step"), ("forward", "forward pass")):
            at = replace(case, mode=mode)
            cases = {"baseline": at}
            if wanted.original:
                cases["the original"] = replace(at, who="original", original=str(wanted.original))
            add(f"{text}, {called}", cases | ours(at))
    if find_spec("diffusers"):
        for mode in ("step", "encode", "decode"):
            for precision in ("fp32", "bf16"):
                at = Case("diffusers", mode=mode, net="sd", size=64 if wanted.quick else 256, precision=precision)
                cases = {"diffusers": at, "FlexVAE": replace(at, who="flexvae")}
                text = f"Stable Diffusion's autoencoder on the same weights, {mode} in {precision}, {at.size}x{at.size}"
                add(text, cases)
    else:
        parts.append("diffusers is not installed: Stable Diffusion's autoencoder against it was not measured.")
    if not wanted.no_growth:
        parts.append(growth(wanted.rounds, wanted.quick))
    head = (
        f"{wanted.rounds} rounds in turn, every contender in a process of its own. The baseline is "
        "`benchmarks/baseline.py`: plain PyTorch, NCHW, fp32. The last column is a bound: how many times faster than "
        "the first row it would be if all its operations (matrix products and convolutions, forward and backward, "
        "counted as they are computed) took as long as convolutions that a process does alone, channels-last, in the "
        "same rounds. The goals were set on another machine.\n\n"
    )
    write_section("Speed", head + "\n\n".join(parts))


if __name__ == "__main__":
    main()
