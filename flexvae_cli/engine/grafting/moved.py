"""How far the outputs of an autoencoder moved when its structure was edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.preparation import center_crop
from flexvae_cli.engine.inference import read_samples
from flexvae_cli.engine.kind import samples_in
from flexvae_cli.engine.model import Model
from flexvae_cli.engine.randomness import generator
from flexvae_cli.engine.reading import read_json
from flexvae_cli.errors import FlexVAEError

MOST_PIXELS = 256  # positions along an axis of a sample that is drawn at random


@dataclass(frozen=True, slots=True)
class Moved:
    """The relative L2 distance of what an output is to what it was.

    Attributes:
        distance: ||new - old|| / ||old||, over all samples; None where they cannot be compared.
        note: what was compared, where that is not all of both.
    """

    distance: float | None
    note: str = ""


def samples_for(
    old: Model, data: str | None, count: int, seed: int, reporter: Callable[[int], Callable[[Fault], None]]
) -> tuple[Tensor, str]:
    """Samples (b, c, *space) of the old model, and in words where they are from.

    Args:
        old: the model.
        data: a folder, a file or a built-in set; by default the data of the model's run, as far as that is there.
        count: the most samples.
        seed: of samples drawn at random, where there is no data.
        reporter: how many files of `data` are read -> what is told of every one that cannot be.

    Raises:
        DataError: there is nothing to read in `data`.
    """
    from flexvae_cli.engine.report.latents import images_of

    if data is not None:
        return _crops(old, data, count, reporter), data
    for folder in (old.path, *old.path.parents[:2]):  # a checkpoint stands in RUN/ckpt
        if (folder / "config.json").is_file():
            try:
                table = read_json(folder / "config.json")["settings"]["data"]
                return images_of(old, table, count), str(table["source"])
            except (FlexVAEError, KeyError, TypeError):
                break
    space = [min(n, MOST_PIXELS) for n in old.net.shape[1:]]
    x = torch.rand(count, old.net.shape[0], *space, generator=generator(seed, "graft"))
    return 2 * x - 1, "random numbers"


def _crops(old: Model, data: str, count: int, reporter: Callable[[int], Callable[[Fault], None]]) -> Tensor:
    """The middles of the first samples, prepared as those of training were: of its size, or of the smallest of them."""
    kind, items = samples_in(old.description, data, where="--data")
    items = items[:count]
    samples = [each.x for each in read_samples(old, items, workers=0, report=reporter(len(items)), kind=kind)]
    space = tuple(min(sizes) for sizes in zip(old.net.shape[1:], *(x.shape[1:] for x in samples), strict=True))
    return torch.stack([center_crop(x.movedim(0, -1), *space).movedim(-1, 0) for x in samples])


def moved(old: Model, new: Model, samples: Tensor) -> dict[str, Moved]:
    """What became of `latent` (means, where there is a posterior) and `reconstruction`.

    Samples go through the new net with as many channels as it takes, zeros where there are more, and repeated along an
    axis that the old one does not have. Of outputs with other channels the first ones are compared.
    """
    latents, outputs = [list[tuple[Tensor, Tensor]]() for _ in range(2)]
    with torch.inference_mode():
        for x in samples.split(1):
            there = _for_net(x, new)
            z, z_new = old.encode(x), new.encode(there)
            latents.append((z, z_new))
            outputs.append((old.decode(z, tuple(x.shape[2:])), new.decode(z_new, tuple(there.shape[2:]))))
    return {"latent": _distance(latents), "reconstruction": _distance(outputs)}


def _for_net(x: Tensor, new: Model) -> Tensor:
    channels, axes = new.net.shape[0], len(new.net.shape) - 1
    while x.dim() - 2 < axes:
        depth = new.net.fitting((1,) * axes)[axes - (x.dim() - 2) - 1]
        x = x.unsqueeze(2).expand(-1, -1, depth, *x.shape[2:])
    if x.shape[1] < channels:
        return torch.cat([x, x.new_zeros(len(x), channels - x.shape[1], *x.shape[2:])], dim=1)
    return x[:, :channels]


def _distance(pairs: list[tuple[Tensor, Tensor]]) -> Moved:
    difference = size = 0.0
    a, b = pairs[0]
    channels, note = min(a.shape[1], b.shape[1]), ""
    for old, new in pairs:
        was = old[:, :channels]
        while was.dim() < new.dim():
            was = was.unsqueeze(2).expand(-1, -1, new.shape[new.dim() - was.dim() + 1], *was.shape[2:])
        if was.shape[2:] != new.shape[2:]:
            sizes = f"{text(tuple(old.shape[1:]))} and {text(tuple(new.shape[1:]))}"
            return Moved(None, f"was and is of another size: {sizes}")
        difference += float((new[:, :channels] - was).double().square().sum())
        size += float(was.double().square().sum())
    if a.shape[1] != b.shape[1]:
        note = f"of the first {channels} channels, {a.shape[1]} before and {b.shape[1]} now"
    return Moved((difference / size) ** 0.5 if size else None, note)


def document(moves: dict[str, Moved]) -> dict[str, Any]:
    """The same as JSON has it."""
    return {name: {"relative_l2": each.distance, "note": each.note} for name, each in moves.items()}
