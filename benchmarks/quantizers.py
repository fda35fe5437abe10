"""Quantizers against a KL bottleneck at the same rate: PSNR, SSIM, and how the codes are used, on unseen photographs.

    python benchmarks/quantizers.py [--steps N] [--seed S] [--dry]

`configs/kl-rate.toml`, `vq.toml`, `fsq.toml`, `lfq.toml` and `vq-inside.toml` are trained in turn, each for N steps on
one thread, 2,000 by default, a few minutes each; `--dry` prints the section instead of writing it.

The rates are made equal so: each quantizer gives 10 bits for every 4x4 pixels, 0.625 bits per pixel, at their full
width; the KL's controller holds 2.5 bits per latent element, of which every 4x4 pixels have four. Its rate is measured
on the photographs again, as the divergence of the posteriors from the prior. Only a draw from the posterior costs that,
so the KL model has two rows: of draws, which is what it can send at that rate, and of means, which is what it gives
otherwise.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from report import write_section

if TYPE_CHECKING:
    from flexvae_cli.engine.inference import Sample
    from flexvae_cli.engine.model import Model

ROOT = Path(__file__).parents[1]
FLEXVAE = str(Path(sys.executable).with_name("flexvae"))
CONFIGS = ("kl-rate", "vq", "fsq", "lfq", "vq-inside")
DATA = "builtin:scenery/val"
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Row(NamedTuple):
    """What one model reaches."""

    config: str
    what: str
    rate: float
    psnr: float
    ssim: float
    codes: dict[str, Any] | None

    def cells(self) -> str:
        use = "- | - | -"
        if self.codes is not None:
            perplexity = f"{self.codes['perplexity']:.0f} of {self.codes['codes']:,}"
            use = f"{100 * self.codes['usage']:.1f} % | {perplexity} | {self.codes['entropy']:.2f}"
        return (
            f"| `{self.config}.toml` | {self.what} | {self.rate:.3f} | {self.psnr:.2f} dB | {self.ssim:.4f} | {use} |"
        )


def trained(config: str, steps: int, seed: int, folder: Path) -> Path:
    """Train a config on one thread; returns the run."""
    run = folder / config
    options = {
        "train.run_dir": run,
        "train.max_steps": steps,
        "train.seed": seed,
        "train.validate_every": steps,
        "train.preview_every": 0,
        "train.checkpoint_every": steps,
        "schedule.warmup_steps": min(200, steps // 5),
    }
    given = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    command = [FLEXVAE, "train", "--config", str(ROOT / f"configs/{config}.toml"), *given]
    subprocess.run(command, check=True, env={**os.environ, **ALONE})
    return run


def rows_of(config: str, run: Path) -> list[Row]:
    """Measure a run on the validation photographs."""
    import torch

    from flexvae_cli.engine.data.sources import list_images
    from flexvae_cli.engine.inference import read_samples
    from flexvae_cli.engine.model import load

    model = load(run)
    samples = list(read_samples(model, list_images(DATA), workers=0, report=print))
    if config != "kl-rate":
        return [measured(model, samples, config, model.net.bottleneck.code)]
    rows = [measured(model, samples, config, "KL, posterior means")]
    model.vae.bottleneck.train()  # from here on latents are drawn
    torch.manual_seed(0)
    return [measured(model, samples, config, "KL, draws from the posterior"), *rows]


def measured(model: Model, samples: list[Sample], config: str, what: str) -> Row:
    """PSNR and SSIM of whole photographs, the rate, and the codes of the one quantizer that there may be."""
    from flexvae_cli.engine.evaluation.codes import codes_counted, told
    from flexvae_cli.engine.inference import encoded_batch, reconstruct
    from flexvae_cli.engine.metrics import mean_scores

    with codes_counted(model.vae) as counted:
        scores = mean_scores([found.scores for found in reconstruct(model, samples)])
    assert scores.psnr is not None
    assert scores.ssim is not None
    pixels = sum(math.prod(sample.size) for sample in samples)
    quantizers = told(counted)
    if quantizers:
        (codes,) = quantizers
        assert counted[0].counts is not None
        rate = counted[0].counts.sum() * math.log2(codes["codes"]) / pixels
        place = "" if codes["place"] == "bottleneck" else f" at {codes['place']}"
        code = model.net.codes[codes["place"]]
        return Row(config, f"`{code}`{place}", float(rate), scores.psnr, scores.ssim, codes)
    from flexvae_cli.engine.evaluation.rate import bits_of

    bits = [each for sample in samples for each in bits_of(model, encoded_batch(model, [sample.x])) or ()]
    return Row(config, what, sum(bits) / pixels, scores.psnr, scores.ssim, None)


def main(steps: int, seed: int, dry: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for config in CONFIGS for row in rows_of(config, trained(config, steps, seed, Path(folder)))]
    for row in rows:
        if row.codes is not None and row.codes["usage"] <= 0.5:
            print(f"warning: {row.config} uses {100 * row.codes['usage']:.1f} % of its codes", file=sys.stderr)
    quality, use = ("bits per pixel", "PSNR", "SSIM"), ("code usage", "perplexity", "entropy (bits)")
    head = ("config", "bottleneck or quantizer", *quality, *use)
    table = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *(row.cells() for row in rows)]
    body = (
        f"Each config trained for {steps:,} steps on one thread (seed {seed}; their own length is longer), then "
        "measured on ten whole validation photographs of 512x256 pixels.\n\n"
        "Bits per pixel: of a quantizer, an index at its full width, which an entropy coder would shorten to the "
        "entropy; of KL, which a controller holds at the same rate in training, the divergence from the prior as "
        "measured on these photographs. A draw from the posterior costs that, its mean does not. Usage is the part of "
        "the codes that occur in these photographs, perplexity is 2 to the entropy.\n\n"
    ) + "\n".join(table)
    if dry:
        print(body)
    else:
        write_section("Quantizers", body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the section, write nothing")
    given = parser.parse_args()
    main(given.steps, given.seed, given.dry)
