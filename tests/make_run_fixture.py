"""Writes `tests/data/runs/VERSION`: a run as this release leaves it, which every later one must load and continue.

Run it once for a release, and never again for that one: python tests/make_run_fixture.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from flexvae_cli import __version__
from flexvae_cli.engine.model import load_files
from flexvae_cli.engine.modelfiles import find_model

RUNS = Path(__file__).parent / "data/runs"
STEPS = 4
CONFIG = f"""# A part of everything that a checkpoint keeps.
[model]
encoder = "encoder.json"
decoder = "decoder.json"
[data]
source = "builtin:scenery/val"
input = "3x16x16"
validation = 0.2
workers = 0
[loss]
kld_target = 0.5
[adversarial]
discriminator = "discriminator.json"
[schedule]
name = "plateau"
[ema]
decay = 0.9
[train]
run_dir = "run"
max_steps = {STEPS}
batch_size = 4
accumulate = 2
log_every = 2
validate_every = 2
preview_every = 0
checkpoint_every = 2
keep_best = "psnr"
device = "cpu"
"""
STRUCTURES = {
    "encoder": ["C2d_3_8_3_2_1", "GN_2_8", "SiLU", "C2d_8_4_3_2_1"],
    "decoder": ["C2d_2_8_3_1_1", "GN_2_8", "SiLU", "UpS_4", "C2d_8_3_3_1_1"],
    "discriminator": ["C2d_3_4_4_2_1", "SiLU", "C2d_4_1_3_1_1"],
}


def sample() -> torch.Tensor:
    """One image (1, 3, 16, 16) in [-1, 1] that needs no file."""
    return torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


def answers(run: Path) -> dict[str, list[float]]:
    """What the model of a run makes of `sample`."""
    model = load_files(find_model(run))
    z = model.encode(sample())
    return {"latent": z.flatten().tolist(), "reconstruction": model.decode(z).flatten()[::16].tolist()}


def main() -> None:
    if (RUNS / __version__).exists():
        raise SystemExit("that release has its run")
    folder = Path(tempfile.mkdtemp()) / __version__  # a checkpoint says where it was made
    folder.mkdir()
    (folder / "flexvae.toml").write_text(CONFIG)
    for name, codes in STRUCTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(codes))
    subprocess.run([sys.executable, "-m", "flexvae_cli", "train"], cwd=folder, check=True)
    run = folder / "run"
    for path in [run / "previews", run / "tensorboard", run / ".lock", run / "log.txt"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in sorted((run / "ckpt").iterdir())[:-1]:
        shutil.rmtree(path)
    (folder / "answers.json").write_text(json.dumps(answers(run)))
    shutil.copytree(folder, RUNS / __version__, symlinks=True)


if __name__ == "__main__":
    main()
