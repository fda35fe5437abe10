"""A GPU: its two ceilings, what training and inference reach of them, and diffusers beside it.

    python benchmarks/on_cuda.py [--rounds 20] [--size 256] [--batch 32] [--no-compile] [--no-growth]

The ceilings are measured, not read from a data sheet: a large matrix product in bf16, and a copy in the GPU's memory. A
step's work is counted from the structures: a backward pass is twice a forward one. What GroupNorm and SiLU as one
function read and write is counted too: x twice and the result, and backward x and the gradient twice and the result.
Without a GPU it writes that nothing was measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from contenders import Case, plan_of, work
from report import write_section
from speed import exponent
from torch import nn

DEVICE = "cuda"
SHAPES = ((128, 256), (256, 128), (512, 64), (512, 32))  # channels and side, as in the nets
GIB = 1 << 30


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
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x = torch.empty(1 << 30, device=DEVICE, dtype=torch.uint8)
    product = statistics.median(seconds(lambda: a @ b, rounds))
    copy = statistics.median(seconds(lambda: x.clone(), rounds))
    return 2 * n**3 / product, 2 * x.numel() / copy


def operations(case: Case) -> float:
    """Of one forward pass, or of a step."""
    with tempfile.TemporaryDirectory() as folder:
        net = plan_of(case, Path(folder)).net
    macs = sum(trace.macs for trace in net.traces((3, case.size, case.size), []))
    return 2.0 * macs * case.batch * (3 if case.mode == "step" else 1)


def tried(case: Case, rounds: int) -> tuple[list[float], int, int] | None:
    """A case's times, and the bytes allocated and reserved at most; None where the memory does not do."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        times = seconds(work(case), rounds)
    except torch.OutOfMemoryError:
        return None
    return times, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def rows(case: Case, ceiling: float, rounds: int, compiled: Sequence[bool | str]) -> list[str]:
    """The contenders, in turn by case: their work is queued on one device."""
    cases = {
        "baseline, fp32": case,
        "FlexVAE, as written, bf16": replace(case, who="flexvae", precision="bf16", fuse="off"),
        "FlexVAE, bf16": replace(case, who="flexvae", precision="bf16"),
        "FlexVAE, bf16, all fused": replace(case, who="flexvae", precision="bf16", fuse="on"),
    }
    if case.mode == "step":
        for way in compiled:
            name = "FlexVAE, bf16, compiled" + (f", {way}" if isinstance(way, str) else "")
            cases[name] = replace(cases["FlexVAE, bf16"], compile=way)
    if case.net == "sd":
        del cases["baseline, fp32"]
        if find_spec("diffusers"):
            cases = {"diffusers, bf16": replace(case, who="diffusers", precision="bf16"), **cases}
    found = []
    for name, each in cases.items():
        known = tried(each, rounds)
        if known is None:
            found.append(f"| {case.net}, {case.mode} | {name} | out of memory | | | |")
            continue
        times, allocated, reserved = known
        median = statistics.median(times)
        share = operations(each) / median / ceiling
        found.append(
            f"| {case.net}, {case.mode} | {name} | {case.batch / median:.0f} | {min(times) * 1e3:.1f} to "
            f"{max(times) * 1e3:.1f} ms | {100 * share:.0f} % | {allocated / GIB:.1f} of {reserved / GIB:.1f} GiB |"
        )
    return found


def norms(batch: int, memory: float, rounds: int) -> str:
    """GroupNorm and SiLU, in bf16: the two layers, the function without Triton, and in Triton."""
    from flexvae_cli.engine.fusing.norm_silu import _GroupNormSilu, triton_kernels

    kernels = triton_kernels(torch.device(DEVICE, torch.cuda.current_device()))
    if kernels is None:
        return "GroupNorm and SiLU in Triton: not measured, Triton is not installed or cannot compile here."
    lines = []
    for last in (False, True):
        for channels, side in SHAPES:
            x = torch.randn(batch, channels, side, side, device=DEVICE, dtype=torch.bfloat16)
            x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
            norm, toward = nn.GroupNorm(32, channels, device=DEVICE), torch.randn_like(x)
            fixed = (norm.weight, norm.bias, 32, norm.eps, True)

            def plain(x: torch.Tensor = x, norm: nn.GroupNorm = norm) -> torch.Tensor:
                return nn.functional.silu(norm(x.float())).to(x.dtype)

            ways = {"two layers": plain}
            for name, function in (("fused", _GroupNormSilu), ("Triton", kernels.GroupNormSilu)):
                ways[name] = lambda x=x, function=function, fixed=fixed: function.apply(x, *fixed)
            for backward in (False, True):

                def act(
                    way: Callable[[], torch.Tensor],
                    back: bool = backward,
                    to: torch.Tensor = toward,
                    of: tuple[torch.Tensor, ...] = (x, *norm.parameters()),
                ) -> None:
                    torch.autograd.grad(way(), of, to) if back else way()

                times = [statistics.median(seconds(lambda way=way: act(way), rounds)) for way in ways.values()]
                share = (8 if backward else 3) * x.numel() * x.element_size() / times[-1] / memory
                shown = " | ".join(f"{1e3 * each:.3f} ms" for each in times)
                what = f"{channels}x{side}x{side}, {'channels-last' if last else 'contiguous'}"
                lines.append(f"| {what}{', with backward' if backward else ''} | {shown} | {100 * share:.0f} % |")
    return (
        f"GroupNorm and SiLU in bf16, {batch} samples; the share is Triton's, of the copy's ceiling:\n\n"
        "| | two layers | fused, without Triton | Triton | share |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(lines)
    )


def growth(size: int, batch: int, rounds: int) -> str:
    """How the time of a step grows with each of three sizes, the others being held."""
    base = Case("flexvae", divisor=4, size=size // 2, batch=max(1, batch // 2), precision="bf16", device=DEVICE)
    series = {
        "image size, pixels a side": {n: replace(base, size=n) for n in (size // 4, size // 2, size, 2 * size)},
        "batch": {n: replace(base, batch=n) for n in (base.batch, 2 * base.batch, 4 * base.batch, 8 * base.batch)},
        "channels, of the widest layer": {512 // d: replace(base, divisor=d) for d in (4, 2, 1)},
    }
    lines = []
    for name, cases in series.items():
        found = {n: tried(case, rounds) for n, case in cases.items()}
        medians = {n: statistics.median(known[0]) for n, known in found.items() if known is not None}
        shown = ", ".join(f"{n}: {medians[n] * 1e3:.1f} ms" if n in medians else f"{n}: out of memory" for n in found)
        fitted = f"{exponent(list(medians), list(medians.values())):.2f}" if len(medians) > 1 else ""
        lines.append(f"| {name} | {shown} | {fitted} |")
    return (
        f"A training step in bf16 at a quarter of the seed's channels, {base.size} pixels a side, batch {base.batch}, "
        "but for what is named; the exponent is fitted:\n\n| of | times | exponent |\n| --- | --- | --- |\n"
        + "\n".join(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 20), ("size", 256), ("batch", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("compile", "growth"):
        parser.add_argument(f"--no-{name}", action="store_true")
    wanted = parser.parse_args()
    if not torch.cuda.is_available():
        write_section("CUDA", "Not measured: there was no GPU.")
        return
    from flexvae_cli.engine.device import settle

    settle()  # before the GPU's first use; it holds for all of them
    compute, memory = ceilings(wanted.rounds)
    lines, compiled = [], [] if wanted.no_compile else [True, "reduce-overhead"]
    for net in ("seed", "sd"):
        for mode in ("step", "forward"):
            who = "baseline" if net == "seed" else "diffusers"
            case = Case(who, mode, net, size=wanted.size, batch=wanted.batch, device=DEVICE)
            lines += rows(case, compute, wanted.rounds, compiled)
    body = (
        f"{torch.cuda.get_device_name()}; batches of {wanted.batch} images of {wanted.size}x{wanted.size}, "
        f"{wanted.rounds} rounds. Ceilings: {compute / 1e12:.0f} TFLOP/s in a bf16 matrix product, "
        f"{memory / 1e12:.2f} TB/s in a copy.\n\n"
        "| | | images/s | spread | of the product's ceiling | memory used, of what is reserved |\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(lines)
    )
    parts = [body, norms(wanted.batch, memory, wanted.rounds)]
    if not wanted.no_growth:
        parts.append(growth(wanted.size, wanted.batch, wanted.rounds))
    write_section("CUDA", "\n\n".join(parts))


if __name__ == "__main__":
    main()
