"""Images on their way to latents on disk: encoded, normalized where that is wanted, recorded in a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.inference import BATCH_SIZE, Sample, encoded_batch, require_finite, runs
from flexvae_cli.engine.latent_files import FileWriter, Latent, ShardWriter
from flexvae_cli.engine.manifest import (
    MANIFEST,
    Failure,
    LatentImage,
    Latents,
    Manifest,
    Source,
    manifest_bytes,
    read_manifest,
)
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.packing import pack
from flexvae_cli.errors import ModelError

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.model import Model

STALE = re.compile(r"[0-9]+(x[0-9]+)+/latents_rank[0-9]{2}_shard[0-9]{3,}\.safetensors")


def about_latents(model: Model, normalization: Normalization | None, width: int | None = None) -> dict[str, Any]:
    """What a file of latents says of itself: whose they are, whether they are raw, and what undoes it if not.

    Of indices it says the bits of each.
    """
    if width is not None:
        return {"weights_hash": model.weights_hash, "latents": "indices", "bits": width}
    about = {"weights_hash": model.weights_hash, "latents": "raw" if normalization is None else "normalized"}
    return about if normalization is None else {**about, **normalization.statistics()}


def labels_of(names: Iterable[str]) -> list[str]:
    """The top-level folders of a source, sorted bytewise; `""` stands for images that are in none."""
    folders = {name.partition("/")[0] if "/" in name else "" for name in names}
    return sorted(folders, key=lambda name: name.encode("utf-8", "surrogateescape"))


def encode_images(
    model: Model,
    samples: Iterable[Sample],
    writer: ShardWriter | FileWriter,
    *,
    labels: Sequence[str],
    flip: bool = False,
    normalization: Normalization | None = None,
    width: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[LatentImage]:
    """Encode images and write their latents; yields the place of each.

    Args:
        model: what encodes.
        samples: the images.
        writer: what becomes of the latents.
        labels: what `labels_of` gave for the whole source.
        flip: encode the mirrored images too.
        normalization: what to apply to the latents; None leaves them raw.
        width: write the quantizer's indices instead, with so many bits each.
        batch_size: most images of a batch.

    Raises:
        ModelError: the model gives latents that are not finite.
    """
    number = {label: index for index, label in enumerate(labels)}
    for run in runs(samples, lambda sample: model.net.fitting(sample.size), batch_size):
        straight, grid = _stored(model, run, [s.x for s in run], normalization, width)
        flipped = _stored(model, run, [s.x.flip(-1) for s in run], normalization, width)[0] if flip else None
        for index, sample in enumerate(run):
            label = number[sample.name.partition("/")[0] if "/" in sample.name else ""]
            mirrored = flipped[index] if flipped is not None else None
            yield writer.add(Latent(sample.name, sample.size, label, straight[index], mirrored, grid))
    writer.close()


def _stored(
    model: Model, run: Sequence[Sample], x: Sequence[Tensor], normalization: Normalization | None, width: int | None
) -> tuple[Sequence[Tensor], Shape | None]:
    """What is written of each sample: its latent, or its packed indices and their shape."""
    encoded = encoded_batch(model, x)
    latents = _on_host(model, run, encoded.z, normalization)
    if width is None or encoded.indices is None:
        return latents.unbind(), None
    indices = encoded.indices.to("cpu", torch.int64)  # (b, q, h, w)
    return [pack(each, width) for each in indices], tuple(indices.shape[1:])


def _on_host(model: Model, run: Sequence[Sample], latents: Tensor, normalization: Normalization | None) -> Tensor:
    """Latents (b, c, h, w) as they are written: float32, normalized where that is wanted, finite."""
    latents = latents.to("cpu", torch.float32)
    if normalization is not None:
        latents = normalization.normalized(latents)
    require_finite(model, run, latents, "latents")
    return latents


def make_manifest(
    model: Model,
    layout: Literal["shards", "files"],
    writer: ShardWriter | FileWriter,
    images: Sequence[LatentImage],
    faults: Sequence[Fault],
    *,
    labels: Sequence[str],
    flip: bool,
    normalization: Normalization | None = None,
    width: int | None = None,
) -> Manifest:
    """What `manifest.json` will say."""
    about: dict[str, Any] = model.description
    return Manifest(
        layout=layout,
        model=Source(
            weights_hash=model.weights_hash,
            bottleneck=about["bottleneck"],
            input=list(about["input"]),
            plugins=about.get("plugins", {}),
        ),
        latents=Latents(
            value="indices" if width else "mean" if model.net.bottleneck.spec.name == "KL" else "output",
            dtype=f"uint{width}" if width else "float32",
            scaling="normalized" if normalization else "raw",
            flip=flip,
            statistics=normalization.statistics() if normalization else about.get("latents", {}),
        ),
        preprocessing=about.get("preprocessing", {}),
        labels=list(labels),
        files=writer.files,
        images=list(images),
        failures=[Failure(name=fault.name, reason=fault.reason) for fault in faults],
    )


def publish_manifest(folder: OutputFolder, manifest: Manifest) -> None:
    """Write the manifest, which says that the encode is complete."""
    folder.write(MANIFEST, manifest_bytes(manifest))


def discard_latents(folder: OutputFolder) -> None:
    """Remove the latents of an earlier encode, the manifest first, so that no reader takes old ones for new."""
    try:
        old = [file.path for file in read_manifest(folder.root).files if file.path.endswith(".safetensors")]
    except ModelError:  # there is none, or it cannot be trusted to name what may be removed
        old = []
    shards = (path.relative_to(folder.root).as_posix() for path in folder.root.glob("*/latents_rank*.safetensors"))
    for name in dict.fromkeys([MANIFEST, *old, *filter(STALE.fullmatch, shards)]):
        folder.remove(name)
