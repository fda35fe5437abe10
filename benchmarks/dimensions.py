"""What the configs for signals, volumes, images of four channels and grey images reach on the files of the tests.

    python benchmarks/dimensions.py [CONFIG ...]

Each is trained as it ships; the files that its `validation` holds out are then reconstructed whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import write_section

ROOT = Path(__file__).parents[1]
FLEXVAE = str(Path(sys.executable).with_name("flexvae"))
CONFIGS = ("audio-1d", "volume-3d", "multichannel", "grey")


def held_out(config: Path) -> list[Path]:
    """The files that training does not see."""
    from flexvae_cli.config import load_config
    from flexvae_cli.engine.source import open_source

    settings = load_config(config).settings
    source = open_source(settings.data, settings.train.seed)
    assert source.validation is not None
    return [item.path for item in source.validation.items]


def measured(name: str, folder: Path, extra: list[str]) -> str:
    """A row of the table."""
    config, run, unseen = ROOT / f"configs/{name}.toml", folder / name, folder / f"{name}-unseen"
    unseen.mkdir()
    files = held_out(config)
    for path in files:
        (unseen / path.name).write_bytes(path.read_bytes())
    sets = [part for each in (f"train.run_dir={run}", *extra) for part in ("--set", each)]
    before = os.times()
    subprocess.run([FLEXVAE, "train", "--config", str(config), *sets], check=True)
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    command = [FLEXVAE, "infer", str(run), str(unseen), str(folder / f"{name}-out"), "--json"]
    mean = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["mean"]
    about = json.loads(
        subprocess.run([FLEXVAE, "inspect", str(config), "--json"], check=True, capture_output=True).stdout
    )
    ssim = "-" if mean["ssim"] is None else f"{mean['ssim']:.4f}"
    shape = "x".join(map(str, about["input"]))
    return f"| `{name}` | {shape} | {len(files)} | {worked:.0f} s | {mean['psnr']:.2f} dB | {ssim} |"


def main(arguments: list[str]) -> None:
    names = [each for each in arguments if "=" not in each] or list(CONFIGS)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(name, Path(folder), [each for each in arguments if "=" in each]) for name in names]
    body = (
        "The configs of `configs/`, trained as they ship on the small real files of `tests/data/real`; whole files "
        "that training does not see, posterior means. PSNR is of numbers from -1 to 1, and high for quiet sounds.\n\n"
        "| config | sample | unseen files | processor time | PSNR | SSIM |\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    )
    write_section("Signals, volumes and other images", body)


if __name__ == "__main__":
    main(sys.argv[1:])
