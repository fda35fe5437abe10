"""What is stored of a model's latents, from what was asked for and what the model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from flexvae_cli.engine.inference import BATCH_SIZE
from flexvae_cli.engine.latents.containers import LAYOUTS
from flexvae_cli.engine.latents.encoding import Encoder
from flexvae_cli.engine.latents.values import DTYPES, INDICES, NAMES, Value, Values
from flexvae_cli.engine.naming import output_names
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.packing import codes_of, width_of
from flexvae_cli.engine.precision import Precision
from flexvae_cli.errors import UsageError, listed

if TYPE_CHECKING:
    from flexvae_cli.engine.model import Model

LayoutName = Literal["shards", "files", "npy", "wds"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What was asked for.

    Attributes:
        layout: a key of `LAYOUTS`.
        scaling: `raw`, `normalized`, `indices`, or None for what suits the bottleneck.
        posterior: `moments`, `mean`, `sample`, or None for what suits the bottleneck.
        dtype: a key of `DTYPES`.
        flips: store the latents of the mirrored images as well.
        seed: what samples are drawn from.
        size: (height, width) to scale and crop each image to; None leaves it at its own size.
        shard_size: most latents of a shard.
        batch_size: most images of a batch.
        precision: how the net computes.
    """

    layout: LayoutName = "shards"
    scaling: Literal["raw", "normalized", "indices"] | None = None
    posterior: Literal["moments", "mean", "sample"] | None = None
    dtype: str = "fp32"
    flips: bool = False
    seed: int = 0
    size: tuple[int, int] | None = None
    shard_size: int = 1024
    batch_size: int = BATCH_SIZE
    precision: str = "fp32"


def make_encoder(model: Model, choices: Choices, names: Sequence[str]) -> Encoder:
    """The model, and how the latents of images of these names are written.

    Raises:
        UsageError: the bottleneck has nothing of the kind that was asked for, the layout no room for the type, or the
            device no such precision.
        ModelError: the model carries no statistics that could normalize its latents.
    """
    values, how = _values(model, choices), LAYOUTS[choices.layout]
    if values.width is None and how.types and values.stored_type not in how.types:
        others = [name for name, dtype in DTYPES.items() if NAMES[dtype] in how.types]
        hint = f"use {listed(others)}, or another --format"
        raise UsageError(f"--format {choices.layout} has no room for {choices.dtype}", where="--dtype", hint=hint)
    return Encoder(
        model,
        values,
        how,
        names={} if how.many else output_names(names, how.suffix),
        about=about(model, values),
        precision=Precision(choices.precision, model.device, "--precision"),
        batch_size=choices.batch_size,
    )


def _values(model: Model, choices: Choices) -> Values:
    """The numbers to store."""
    code = model.net.bottleneck.code
    codes = codes_of(model) if choices.scaling in (None, INDICES) else None
    if choices.scaling == INDICES and codes is None:
        hint = "leave --latents out, or write --latents raw"
        raise UsageError(f"the bottleneck {code} gives no indices", where="--latents", hint=hint)
    has_posterior = _has_posterior(model)
    if choices.posterior is not None and not has_posterior:
        raise UsageError(f"the bottleneck {code} has no posterior", where="--posterior", hint="leave --posterior out")
    if codes is not None:
        if choices.dtype != "fp32":
            hint = "leave --dtype out, or write --latents raw"
            raise UsageError("indices take as many bits as they need", where="--dtype", hint=hint)
        return Values(INDICES, flip=choices.flips, width=width_of(codes))
    value: Value = (choices.posterior or "moments") if has_posterior else "output"
    normalization = _normalization(model) if choices.scaling == "normalized" else None
    return Values(value, DTYPES[choices.dtype], normalization, choices.flips, choices.seed)


def about(model: Model, values: Values) -> dict[str, Any]:
    """What a file of latents says of itself: whose they are, what they are, and what undoes a normalization."""
    said: dict[str, Any] = {"weights_hash": model.weights_hash, "value": values.value}
    if values.width is not None:
        return {**said, "latents": INDICES, "bits": values.width}
    if values.normalization is None:
        return {**said, "latents": "raw"}
    return {**said, "latents": "normalized", **values.normalization.statistics()}


@torch.inference_mode()
def _has_posterior(model: Model) -> bool:
    """Whether the bottleneck gives a distribution: the smallest latent tells."""
    channels = model.net.traces(model.net.shape, [])[0].gives[0]
    one = torch.zeros(1, channels, *(1 for _ in model.net.shape[1:]), device=model.device)
    return model.vae.bottleneck(one).posterior is not None


def _normalization(model: Model) -> Normalization:
    hint = f"flexvae stats {model.path} DATA --write BUNDLE measures them anew"
    return Normalization.of(model.description.get("latents"), model.net.latent_shape[0], str(model.path), hint)
