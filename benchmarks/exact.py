"""What `--exact` costs in time and saves in memory: the seed's decoder on one picture, against the plain run.

    python benchmarks/exact.py [SIDE]        # pixels, by default 512

Every run is a process of its own. Memory is what the process had at its peak, by `VmHWM`, less what it had with the
model loaded and everything imported; all runs decode the same latents with the same weights, freshly drawn, and the
error of each is told against the same net in fp64. Nets and allocator are as `flexvae decode` has them: in the plain
run layers are fused where that is faster, and freed memory is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REDUCTION = 16  # of the seed's encoder, along each axis
BOUNDS = (64, 128, 256)  # MiB
REFERENCE = -1  # in the place of a bound: the plain net in fp64
ROUNDS = 3


def decode(side: int, memory: int, output: Path) -> dict[str, float]:
    """Decode once in this process, plainly where `memory` (MiB) is 0; writes the picture, returns seconds and MiB."""
    import time

    from flexvae_cli.commands._before_torch import before_torch

    if memory > 0:
        before_torch("THP_MEM_ALLOC_ENABLE", "1")  # as the commands have it with --exact

    import torch
    from safetensors.torch import save_file

    from flexvae_cli.engine.build import build_vae, meta_step
    from flexvae_cli.engine.device import settle
    from flexvae_cli.engine.exact.model import ExactModel
    from flexvae_cli.engine.memory.machine import process_memory
    from flexvae_cli.engine.model import Model, in_use
    from flexvae_cli.net import make_net
    from flexvae_cli.plugins import installed
    from flexvae_cli.structure import read_structure

    settle()
    registry = installed().registry
    encoder, decoder = (read_structure(ROOT / f"configs/structures/{n}.json", registry) for n in ("encoder", "decoder"))
    net = make_net(encoder, "KL", decoder, (3, 256, 256), registry, meta_step)
    torch.manual_seed(0)
    model = Model(build_vae(net), net, net.describe(), ROOT, "")
    z = torch.randn(1, 4, side // REDUCTION, side // REDUCTION)
    if memory == REFERENCE:
        with torch.inference_mode():
            save_file({"x": model.vae.double().eval().decoder(z.double()).clamp(-1, 1).contiguous()}, output)
        return {}
    in_use(model.vae, "off" if memory else "auto")
    if memory:
        model = ExactModel(model, memory << 20, output.parent)
    with torch.inference_mode():
        model.decode(z[..., :4, :4])  # libraries load, and layers are proved, once
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is there now
        loaded = process_memory("VmHWM")
        begin = time.perf_counter()
        x = model.decode(z)
        seconds = time.perf_counter() - begin
    save_file({"x": x.contiguous()}, output)
    return {"seconds": seconds, "MiB": (process_memory("VmHWM") - loaded) / 2**20}


def measured(side: int, memory: int, folder: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", str(side), str(memory), str(folder / f"{memory}.safetensors")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(side: int) -> None:
    import statistics

    from report import write_section
    from safetensors.torch import load_file

    rounds: dict[int, list[dict[str, Any]]] = {memory: [] for memory in (0, *BOUNDS)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            for memory, found in rounds.items():  # in turn, so that a slow minute is shared
                found.append(measured(side, memory, Path(folder)))
        measured(side, REFERENCE, Path(folder))
        pictures = {memory: load_file(Path(folder) / f"{memory}.safetensors")["x"] for memory in (*rounds, REFERENCE)}
    rows = []
    for memory, found in rounds.items():
        seconds, peak = (statistics.median(each[key] for each in found) for key in ("seconds", "MiB"))
        ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(found, rounds[0], strict=True))
        error = float((pictures[memory] - pictures[REFERENCE]).abs().max())
        name = f"`--exact --memory {memory}MiB`" if memory else "plain"
        rows.append(f"| {name} | {seconds:.1f} s | {ratio:.2f} | {peak:,.0f} MiB | {error:.1e} |")
    body = (
        f"The seed's decoder on {side}x{side} pixels in fp32, one process each, median of {ROUNDS} rounds in turn. "
        "Memory is the peak of the whole process (`VmHWM`) less what it had before, what libraries copy included; the "
        "error is the largest difference from the same net in fp64, of numbers from -1 to 1.\n\n"
        "| run | time | ratio | memory | error |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )
    write_section("Exact decoding on little memory", body)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(decode(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
