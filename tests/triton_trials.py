"""What the Triton kernels compute against plain layers in fp64, as JSON on stdout.

    TRITON_INTERPRET=1 python tests/triton_trials.py random FIRST END
    TRITON_INTERPRET=1 python tests/triton_trials.py far FOLDER
    python tests/triton_trials.py compiled

Whether kernels are interpreted is decided when Triton is imported, so this is a program of its own.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor, nn

from flexvae_cli.engine.fusing import norm_silu_kernels as kernels
from flexvae_cli.engine.fusing import norm_silu_triton as host

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def layouts(x: Tensor) -> dict[str, Tensor]:
    """x as it may lie in memory."""
    together = x.movedim(1, -1).contiguous().movedim(-1, 1)
    gaps = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)[..., ::2].copy_(x)
    return {"contiguous": x.contiguous(), "last": together, "gaps": gaps, "turned": x.mT.contiguous().mT}


def case(seed: int) -> tuple[dict[str, Any], Tensor, nn.GroupNorm]:
    """A random input, in one of the layouts, and a norm for it."""
    draw = random.Random(seed)
    axes, samples = draw.randint(1, 3), draw.randint(1, 2)
    groups, per_group = draw.choice([1, 2, 3, 5]), draw.choice([1, 2, 3, 4, 7, 17])
    space = [draw.randint(1, {1: 90, 2: 9, 3: 4}[axes]) for _ in range(axes)]
    host.TILE, host.WIDEST, host.DEPTH = draw.choice([(64, 16, 16), (128, 4, 256), (2048, 64, 256)])
    kind, layout = draw.choice(list(TYPES)), draw.choice(["contiguous", "last", "gaps", "turned"])
    torch.manual_seed(seed)
    norm = nn.GroupNorm(groups, groups * per_group, eps=draw.choice([1e-6, 1e-5, 1e-2]))
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 0.5, 0.5)
    x = (draw.choice([0.1, 3.0]) * torch.randn(samples, groups * per_group, *space) + draw.choice([0, 10])).to(
        TYPES[kind]
    )
    if axes == 1 and layout == "turned":
        layout = "last"
    told = {"seed": seed, "shape": list(x.shape), "groups": groups, "type": kind, "layout": layout}
    return told, layouts(x)[layout], norm


def last(x: Tensor) -> bool:
    """Whether channels lie side by side."""
    return x.movedim(1, -1).is_contiguous()


def off(found: Tensor, wanted: Tensor, least: float) -> float:
    """The largest difference, in parts of the largest number, or of `least`."""
    return float((found.detach().double().cpu() - wanted.cpu()).abs().max()) / max(float(wanted.abs().max()), least)


def against_plain(x: Tensor, norm: nn.GroupNorm, *, turned: bool = False) -> dict[str, Any]:
    """How far output and gradients are from those of the layers in fp64, and whether they lie as x does.

    Args:
        x: (b, c, *space).
        norm: the layer.
        turned: whether the gradient that comes in lies in another way.
    """
    x = x.detach().requires_grad_()
    parameters = [p.detach().clone().to(x.device).requires_grad_() for p in norm.parameters()]
    out = host.GroupNormSilu.apply(x, *parameters, norm.num_groups, norm.eps, True)
    toward = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=x.device).reshape(out.shape)
    gradient = toward.to(out.dtype)
    gradient = layouts(gradient)["contiguous" if turned == last(x) else "last"]
    found = torch.autograd.grad(out, [x, *parameters], gradient)
    exact = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps).to(x.device, torch.float64)
    exact.load_state_dict(norm.state_dict())
    wide = x.detach().double().requires_grad_()
    wanted = nn.functional.silu(exact(wide))
    gradients = torch.autograd.grad(wanted, [wide, *exact.parameters()], gradient.double())
    largest = max(float(each.abs().max()) for each in gradients)
    differences = [off(out, wanted.detach(), 1e-3)]
    differences += [off(a, b, 0.1 * largest) for a, b in zip(found, gradients, strict=True)]
    return {
        "off": differences,
        "finite": all(bool(each.isfinite().all()) for each in (out, *found)),
        "types": all(a.dtype == b.dtype for a, b in zip((out, *found), (x, x, *parameters), strict=True)),
        "lies_as_it_came": all(
            each.is_contiguous() == x.is_contiguous() or not (x.is_contiguous() or last(x)) for each in (out, found[0])
        ),
    }


def far(folder: Path) -> dict[str, float]:
    """Statistics of channels that lie further apart than 32 bits reach, in a file that is nearly all hole."""
    apart, channels, positions = 1 << 30, 3, 8
    size = (channels - 1) * apart + positions
    flat = torch.from_file(str(folder / "far"), shared=True, size=size, dtype=torch.float16)
    x = flat.as_strided((1, channels, positions), (size, apart, 1))
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    cut = host.Cut(1, channels, positions, (channels * apart, apart, 1), channels, (4, 8), 1)
    parts = torch.empty(2, *cut.parts)
    mean, inverse = torch.empty(2, 1, 1)
    interpreted(cut, x, parts, mean, inverse)
    wanted = x.double()
    first = host._one_group(x.device).flatten()
    return {
        "a trial's": float((first - torch.tensor([0.0, 1.0])).abs().max()),
        "mean": abs(float(mean) - float(wanted.mean())),
        "inverse": abs(float(inverse) - float((wanted.var(correction=0) + 1e-5).rsqrt())),
    }


def interpreted(cut: Any, x: Tensor, parts: Tensor, mean: Tensor, inverse: Tensor) -> None:
    """The two kernels of the statistics, without the interpreter's copy of all that x could point to."""
    from triton.runtime.interpreter import GridExecutor

    GridExecutor._restore_args_dev = lambda *_: None  # of what lies on a CPU it writes every byte anew
    cut.launch(kernels.moments, x, *parts)
    cut.launch_groups(kernels.joined, *parts, mean, inverse, 1e-5)


def compiled() -> dict[str, int]:
    """The length of the machine code that each kernel becomes, for GPUs that are not here."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found = {}
    for name in ("moments", "joined", "forward", "sums", "backward"):
        kernel = getattr(kernels, name)
        for capability, type_, large in ((80, "fp32", False), (90, "bf16", True)):
            known = {"steps": 2, "wide": 64, "long": 32, "large": large, "block": host.TILE}
            of_x = ("x", "out", "gradient", "dx")
            signature, constants = {}, {}
            for parameter in kernel.params:
                if parameter.is_constexpr:
                    signature[parameter.name] = "constexpr"
                    constants[(parameter.num,)] = known[parameter.name]
                elif parameter.name == "eps":
                    signature[parameter.name] = "fp32"
                elif parameter.name in SIZES:
                    signature[parameter.name] = "i64" if large and parameter.name.startswith("by_") else "i32"
                else:
                    signature[parameter.name] = f"*{type_ if parameter.name in of_x else 'fp32'}"
            source = ASTSource(kernel, signature, constants)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            found[f"{name} {capability}"] = len(made.asm["cubin"])
    return found


SIZES = ("groups", "per_group", "channel_count", "positions", "by_sample", "by_channel", "by_position", "tiles", "deep")


def main() -> None:
    what, *rest = sys.argv[1:]
    if what == "random":
        for seed in range(*map(int, rest)):
            told, x, norm = case(seed)
            print(json.dumps(told | against_plain(x, norm, turned=seed % 2 == 0)), flush=True)
    elif what == "far":
        print(json.dumps(far(Path(rest[0]))))
    else:
        print(json.dumps(compiled()))


if __name__ == "__main__":
    main()
