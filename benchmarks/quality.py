"""What training choices give, and the time they take: `configs/sharper.toml` against `configs/quickstart.toml`.

    python benchmarks/quality.py [SEED ...]

Both are trained on the same photographs, in turn, seed by seed (A B A B ...), for as many steps as their configs say.
Both keep a twelfth of the numbers. The times are part of the result, so nothing else should run on the machine; a gain
counts only where the second takes no longer than the first, and the section that is written says what it took.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from report import write_section

ROOT = Path(__file__).parents[1]
FLEXVAE = str(Path(sys.executable).with_name("flexvae"))
PLAIN, OURS = "quickstart", "sharper"


class Result(NamedTuple):
    """One run: seconds of the whole `train` command, and the scores of every photograph by name."""

    seconds: float
    psnr: dict[str, float]
    ssim: dict[str, float]


def measured(config: str, seed: int, folder: Path) -> Result:
    """Train a config with a seed, and measure it on the photographs that it has not seen."""
    run, out = folder / f"{config}-{seed}", folder / f"{config}-{seed}.json"
    command = [FLEXVAE, "train", "--config", str(ROOT / f"configs/{config}.toml")]
    begin = time.perf_counter()
    subprocess.run([*command, "--set", f"train.run_dir={run}", "--set", f"train.seed={seed}"], check=True)
    seconds = time.perf_counter() - begin
    subprocess.run([FLEXVAE, "eval", str(run), "builtin:scenery/val", "--output", str(out)], check=True)
    images = json.loads(out.read_text())["images"]
    return Result(seconds, {i["name"]: i["psnr"] for i in images}, {i["name"]: i["ssim"] for i in images})


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


def main(seeds: list[int]) -> None:
    results: dict[str, list[Result]] = {PLAIN: [], OURS: []}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for config in (PLAIN, OURS):
                found = measured(config, seed, Path(folder))
                results[config].append(found)
                psnr, ssim = statistics.mean(found.psnr.values()), statistics.mean(found.ssim.values())
                rows.append(f"| {seed} | `{config}.toml` | {found.seconds:.0f} s | {psnr:.2f} dB | {ssim:.4f} |")
    a, b = results[PLAIN], results[OURS]
    ratio = statistics.median(y.seconds / x.seconds for x, y in zip(a, b, strict=True))
    body = (
        f"`configs/{OURS}.toml` against `configs/{PLAIN}.toml`, ten whole validation photographs of 512x256 pixels, "
        f"posterior means, both a twelfth of the numbers. The time is that of the whole command; the second takes "
        f"{ratio:.2f} of the first's (median over seeds).\n\n"
        "| seed | config | time | PSNR | SSIM |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        f"PSNR {gain(a, b, 'psnr')}. SSIM {gain(a, b, 'ssim')}."
    )
    write_section("Quality and time", body)


if __name__ == "__main__":
    main([int(s) for s in sys.argv[1:]] or [0, 1, 2])
