"""What the quickstart reaches: PSNR and SSIM on ten photographs that it did not train on, over several seeds.

    python benchmarks/quickstart.py [SEED ...]

The references are what a photograph keeps when it is stored with fewer pixels (bicubic down and up again).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

from PIL import Image
from report import write_section

ROOT = Path(__file__).parents[1]
FLEXVAE = str(Path(sys.executable).with_name("flexvae"))


def bicubic(factor: int) -> float:
    """Mean PSNR in dB of the validation photographs after bicubic resizing to 1 / factor of the sides and back."""
    import torch

    from flexvae_cli.engine.data.images import pillow_array, to_tensor
    from flexvae_cli.engine.metrics import mean_scores, scores

    found = []
    for path in sorted(Path(str(files("flexvae_cli"))).glob("assets/scenery/val/*.jpg")):
        photo = Image.open(path)
        small = photo.resize((photo.width // factor, photo.height // factor), Image.Resampling.BICUBIC)
        back = small.resize(photo.size, Image.Resampling.BICUBIC)
        tensors: list[torch.Tensor] = [to_tensor(pillow_array(image, 3)) for image in (photo, back)]
        found.append(scores(*tensors))
    return mean_scores(found).psnr or 0.0


def trained(seed: int, folder: Path) -> tuple[float, float, float, float]:
    """Seconds of the whole `train` command, by the clock and of the processors, PSNR and SSIM of unseen photographs."""
    run, out = folder / f"run-{seed}", folder / f"out-{seed}"
    config = str(ROOT / "configs/quickstart.toml")
    start, before = time.perf_counter(), os.times()
    command = [FLEXVAE, "train", "--config", config, "--set", f"train.run_dir={run}", "--set", f"train.seed={seed}"]
    subprocess.run(command, check=True)
    taken, after = time.perf_counter() - start, os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    command = [FLEXVAE, "infer", str(run), "builtin:scenery/val", str(out), "--json"]
    mean = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["mean"]
    return taken, worked, mean["psnr"], mean["ssim"]


def main(seeds: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = {seed: trained(seed, Path(folder)) for seed in seeds}
    rows = [
        f"| {seed} | {taken:.0f} s | {worked:.0f} s | {psnr:.2f} dB | {ssim:.4f} |"
        for seed, (taken, worked, psnr, ssim) in results.items()
    ]
    mean = statistics.mean(psnr for _, _, psnr, _ in results.values())
    body = (
        "`configs/quickstart.toml`, ten whole validation photographs of 512x256 pixels, posterior means. The time is "
        "that of the whole command, start-up, validation and checkpoints included: by the clock, which other work on "
        "the machine makes longer, and of the processors, which it hardly does.\n\n"
        "| seed | clock | processors | PSNR | SSIM |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        f"Mean PSNR {mean:.2f} dB, with a twelfth of the numbers. For comparison, stored small and enlarged again, "
        f"bicubic both ways: {bicubic(2):.2f} dB at half of width and height (a quarter of the numbers), "
        f"{bicubic(4):.2f} dB at a quarter of width and height (a sixteenth)."
    )
    write_section("Quickstart", body)


if __name__ == "__main__":
    main([int(s) for s in sys.argv[1:]] or [0, 1, 2])
