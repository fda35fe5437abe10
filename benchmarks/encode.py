"""Encoding a folder of photographs of 12 megapixels, against a loop that takes one at a time; and reading them.

    python benchmarks/encode.py [--images 24] [--rounds 2] [--divisors 4 1] [--size 256] [--pixels 4000x3000]

The photographs are those that the package carries, scaled to 4000x3000 and saved as JPEG of quality 90. The loop is
`encode_folder` of baseline.py. `flexvae encode` is run as a command, once on a few images and once on all: the
difference is what the others take, without the start. Reading is measured in one process with one thread, against
torchvision's ImageFolder with Resize, CenterCrop and ToTensor. How long training waits for data is what a run says of
itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice, product
from pathlib import Path

import torch
from baseline import Autoencoder, codes_of, encode_folder
from contenders import Case
from PIL import Image
from report import write_section
from speed import Contender

FLEXVAE = str(Path(sys.executable).with_name("flexvae"))
COPIES = 8  # of each photograph for a small encoder, that what it takes stands out against starting
WAYS = {"fp32": ("--precision", "fp32"), "bf16": ("--precision", "bf16")}


def photographs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """So many JPEGs; those that are alike are turned, mirrored or both."""
    from flexvae_cli.engine.data.sources import list_images

    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
    scenes = list_images("builtin:scenery")
    paths = []
    for index, scene in enumerate(islice(cycle(scenes), count)):
        with Image.open(scene.path) as image:
            turn = turns[index // len(scenes) % len(turns)]
            turned = image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)
            path = folder / "photographs" / f"{index:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            turned.resize((width, height), Image.Resampling.LANCZOS).save(path, quality=90)
            paths.append(path)
    return paths


def model_of(folder: Path, divisor: int, size: int) -> Path:
    """A run with the seed's nets, their channels divided, untrained."""
    from flexvae_cli.engine.build import build_vae
    from flexvae_cli.engine.checkpoint import save_checkpoint
    from flexvae_cli.net import make_net
    from flexvae_cli.plugins import installed
    from flexvae_cli.structure import parse_structure

    registry, run = installed().registry, folder / f"run-{divisor}"
    encoder, decoder = (parse_structure(codes_of(n, divisor), registry, n) for n in ("encoder", "decoder"))
    net = make_net(encoder, "KL", decoder, (3, size, size), registry, None)
    model = {**net.describe(), "output": "samples", "preprocessing": {"background": "#ffffff", "exif": True}}
    save_checkpoint(run, 0, weights=build_vae(net).state_dict(), model=model, training={}, state={})
    return run


def command(run: Path, photos: Path, output: Path, size: int, options: Sequence[str]) -> float:
    """Seconds of `flexvae encode`, from its start to its end."""
    start = time.perf_counter()
    arguments = [
        FLEXVAE,
        "--quiet",
        "encode",
        run,
        photos,
        output,
        "--resize",
        f"{size}x{size}",
        "--overwrite",
        *options,
    ]
    subprocess.run(list(map(str, arguments)), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def encoding(folder: Path, paths: Sequence[Path], divisor: int, size: int, rounds: int) -> dict[str, float]:
    """Images per second of the loop and of the command, medians of rounds that take turns."""
    some = max(1, len(paths) // 6)
    count = len(paths) - some
    copies = COPIES if divisor > 1 else 1
    few = linked(folder / f"few-{divisor}", paths[:some], 1)
    many = linked(folder / f"many-{divisor}", paths, copies)
    torch.manual_seed(0)
    plain, run, loop = Autoencoder(divisor), model_of(folder, divisor, size), folder / "loop"
    loop.mkdir(exist_ok=True)
    found: dict[str, list[float]] = {name: [] for name in ("loop", *WAYS)}
    for _ in range(rounds):
        start = time.perf_counter()
        encode_folder(plain, paths[:count], size, loop)
        found["loop"].append(count / (time.perf_counter() - start))
        for name, options in WAYS.items():
            whole = command(run, many, folder / "latents", size, options)
            more = whole - command(run, few, folder / "latents", size, options)
            found[name].append((len(paths) * copies - some) / more)
    return {name: statistics.median(rates) for name, rates in found.items()}


def linked(folder: Path, paths: Sequence[Path], copies: int) -> Path:
    """A folder with links to files, so many to each."""
    folder.mkdir()
    for path, copy in product(paths, range(copies)):
        (folder / f"{copy}-{path.name}").hardlink_to(path)
    return folder


def bound(divisor: int, size: int, rounds: int) -> float:
    """Images per second of the encoder if all its operations in bf16 ran at the rate of convolutions alone."""
    nets, alone = (
        Contender(Case(who, mode="encode", divisor=divisor, size=size, precision="bf16"))
        for who in ("flexvae", "convolutions")
    )
    rate = alone.operations() / statistics.median(alone.seconds() for _ in range(rounds))
    operations = nets.operations()
    for each in (nets, alone):
        each.leave()
    return rate / operations


def per_second(read: Callable[[int], object], count: int, rounds: int) -> float:
    """Images per second, the median of some rounds."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for index in range(count):
            read(index)
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def reading(folder: Path, paths: Sequence[Path], size: int, rounds: int) -> dict[str, float]:
    """Images per second of one core, from a JPEG to a sample."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    from flexvae_cli.engine.data.cache import ImageCache
    from flexvae_cli.engine.data.dataset import EvaluationImages
    from flexvae_cli.engine.data.preparation import Preparation
    from flexvae_cli.engine.data.sources import Item

    torch.set_num_threads(1)
    items = [Item(path.name, path) for path in paths]
    ways = {
        "torchvision": ImageFolder(paths[0].parents[1], Compose([Resize(size), CenterCrop(size), ToTensor()])),
        "data.draft = false": EvaluationImages(items, Preparation((3, size, size), draft=False)),
        "FlexVAE": EvaluationImages(items, Preparation((3, size, size))),
        "data.cache_dir, from the second epoch on": EvaluationImages(
            items, Preparation((3, size, size), cache=ImageCache.at(folder / "cache"))
        ),
    }
    for index in range(len(items)):
        ways["data.cache_dir, from the second epoch on"][index]
    return {name: per_second(way.__getitem__, len(items), rounds) for name, way in ways.items()}


def waiting(folder: Path, steps: int) -> float:
    """Part of its time that training of the quickstart waits for data, the start left out."""
    run = folder / "waiting"
    sets = (f"train.run_dir={run}", f"train.max_steps={steps}", "train.log_every=25")
    options = [part for each in sets for part in ("--set", each)]
    config = Path(__file__).parents[1] / "configs/quickstart.toml"
    subprocess.run([FLEXVAE, "--quiet", "train", "--config", str(config), *options], check=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.mean([line["data_wait"] for line in lines if "data_wait" in line][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--divisors", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400, help="of training, to see how long it waits for data")
    parser.add_argument("--pixels", default="4000x3000", help="width x height of the photographs")
    parser.add_argument("--dry", action="store_true", help="print the section, leave the page as it is")
    wanted = parser.parse_args()
    width, height = map(int, wanted.pixels.split("x"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = photographs(folder / "source", wanted.images, width, height)
        encoded = {each: encoding(folder, paths, each, wanted.size, wanted.rounds) for each in wanted.divisors}
        bounds = {each: bound(each, wanted.size, wanted.rounds) for each in wanted.divisors}
        waits = waiting(folder, wanted.steps)
        read = reading(folder, paths, wanted.size, wanted.rounds)
    rows = [
        f"| {'the channels of the seed' if divisor == 1 else f'1/{divisor} of them'} | {rates['loop']:.2f} "
        f"| {rates['fp32']:.2f} ({rates['fp32'] / rates['loop']:.1f} x) "
        f"| {rates['bf16']:.2f} ({rates['bf16'] / rates['loop']:.1f} x) "
        f"| {bounds[divisor]:.1f} ({bounds[divisor] / rates['loop']:.1f} x) |"
        for divisor, rates in encoded.items()
    ]
    plain = read["torchvision"]
    body = [
        f"{len(paths)} photographs of {width}x{height}, JPEG of quality 90, to {wanted.size}x{wanted.size}; medians of "
        f"{wanted.rounds} rounds in turn. The loop decodes in full and encodes one image at a time in fp32, a file "
        "each; `flexvae encode --resize` is timed as a command, less its start. The goal is 8 times the loop in bf16 "
        "at a quarter of the channels, and 4.5 times with all. The last column is a bound: the encoder alone, if its "
        "operations ran at the rate that convolutions reach which a process does alone.",
        "",
        "| encoder | the loop, images/s | `flexvae encode` | `--precision bf16` | bf16, at convolutions' rate |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        "Reading alone, on one core:",
        "",
        "| | images/s | |",
        "| --- | --- | --- |",
        *(f"| {name} | {rate:.1f} | {rate / plain:.1f} x |" for name, rate in read.items()),
        "",
        f"Training of `configs/quickstart.toml` waits for data {100 * waits:.1f} % of its time.",
    ]
    if wanted.dry:
        print("\n".join(body))
    else:
        write_section("Encoding a folder", "\n".join(body))


if __name__ == "__main__":
    main()
