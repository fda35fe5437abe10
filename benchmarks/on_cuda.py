"""A GPU: its two ceilings, what training and inference reach of them, and diffusers beside it.

    python benchmarks/on_cuda.py [--rounds 20] [--size 256] [--batch 32]

The ceilings are measured, not read from a data sheet: a large matrix product in bf16, and a copy in the GPU's memory. A
step's work is counted from the structures: a backward pass is twice a forward one. Without a GPU it writes that nothing
was measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from contenders import Case, plan_of, work
from report import write_section


def seconds(act: Callable[[], object], rounds: int) -> list[float]:
    """Of each of several times, by the GPU's own clock."""
    for _ in range(3):
        act()
    found = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        act()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return found


def ceilings(rounds: int) -> tuple[float, float]:
    """Operations a second of a matrix product in bf16, and bytes a second of a copy, read and written."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    product = statistics.median(seconds(lambda: a @ b, rounds))
    copy = statistics.median(seconds(lambda: x.clone(), rounds))
    return 2 * n**3 / product, 2 * x.numel() / copy


def operations(case: Case) -> float:
    """Of one forward pass, or of a step."""
    with tempfile.TemporaryDirectory() as folder:
        net = plan_of(case, Path(folder)).net
    macs = sum(trace.macs for trace in net.traces((3, case.size, case.size), []))
    return 2.0 * macs * case.batch * (3 if case.mode == "step" else 1)


def rows(case: Case, ceiling: float, rounds: int) -> list[str]:
    """The contenders, in turn by case: their work is queued on one device."""
    cases = {
        "baseline, fp32": case,
        "FlexVAE, as written, bf16": replace(case, who="flexvae", precision="bf16", fuse="off"),
        "FlexVAE, bf16": replace(case, who="flexvae", precision="bf16"),
        "FlexVAE, bf16, all fused": replace(case, who="flexvae", precision="bf16", fuse="on"),
    }
    if case.net == "sd":
        del cases["baseline, fp32"]
        if find_spec("diffusers"):
            cases = {"diffusers, bf16": replace(case, who="diffusers", precision="bf16"), **cases}
    found = []
    for name, each in cases.items():
        times = seconds(work(each), rounds)
        median = statistics.median(times)
        share = operations(each) / median / ceiling
        found.append(
            f"| {case.net}, {case.mode} | {name} | {case.batch / median:.0f} | {min(times) * 1e3:.1f} to "
            f"{max(times) * 1e3:.1f} ms | {100 * share:.0f} % |"
        )
        torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 20), ("size", 256), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    if not torch.cuda.is_available():
        write_section("CUDA", "Not measured: there was no GPU.")
        return
    compute, memory = ceilings(wanted.rounds)
    lines = []
    for net in ("seed", "sd"):
        for mode in ("step", "forward"):
            who = "baseline" if net == "seed" else "diffusers"
            case = Case(who, mode, net, size=wanted.size, batch=wanted.batch, device="cuda")
            lines += rows(case, compute, wanted.rounds)
    body = (
        f"{torch.cuda.get_device_name()}; batches of {wanted.batch} images of {wanted.size}x{wanted.size}, "
        f"{wanted.rounds} rounds. Ceilings: {compute / 1e12:.0f} TFLOP/s in a bf16 matrix product, "
        f"{memory / 1e12:.2f} TB/s in a copy.\n\n"
        "| | | images/s | spread | of the product's ceiling |\n| --- | --- | --- | --- | --- |\n" + "\n".join(lines)
    )
    write_section("CUDA", body)


if __name__ == "__main__":
    main()
