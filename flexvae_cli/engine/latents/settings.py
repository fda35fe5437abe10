"""All that decides what a latent is: two encodes go on with one another's work where they agree in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli.engine.latents.containers import LAYOUTS
from flexvae_cli.engine.latents.journal import Record, close_journals, read_journals, records_of
from flexvae_cli.engine.manifest import MANIFEST, Latents, Source, read_manifest
from flexvae_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.latents.encoding import Encoder
    from flexvae_cli.engine.model import Model
    from flexvae_cli.engine.naming import OutputFolder

LEFT_BEHIND = re.compile(r"[0-9]+(x[0-9]+)+/(latents_rank[0-9]{2}_shard[0-9]{3,}\.safetensors|shard-[0-9]{6}\.tar)")
OTHER = "choose another output folder, or add --overwrite"
OPTIONS = {
    "value": "--posterior",
    "scaling": "--latents",
    "dtype": "--dtype",
    "flip": "--flips",
    "layout": "--format",
    "tile": "--tile",
}


def source_of_model(model: Model) -> Source:
    """What a manifest says of a model."""
    about = model.description
    return Source(
        weights_hash=model.weights_hash,
        bottleneck=about["bottleneck"],
        input=list(about["input"]),
        plugins=about.get("plugins", {}),
    )


def latents_of(encoder: Encoder) -> Latents:
    """What a manifest says of the numbers."""
    values, model = encoder.values, encoder.model
    normalization = values.normalization
    return Latents(
        value=values.value,
        dtype=values.stored_type,
        scaling="normalized" if normalization else "raw",
        flip=values.flip,
        statistics=normalization.statistics() if normalization else model.description.get("latents", {}),
        seed=values.seed if values.value == "sample" else None,
        precision=encoder.precision.name,
        tile=model.tile,
    )


def settings(
    layout: str, shard_size: int | None, weights_hash: str, latents: Latents, preprocessing: dict[str, Any]
) -> dict[str, Any]:
    """What two encodes must agree in, as JSON."""
    about = latents.model_dump(exclude={"error", "statistics"})
    if latents.scaling == "normalized":
        about["statistics"] = latents.statistics
    return {
        "layout": layout,
        "shard_size": shard_size,
        "weights_hash": weights_hash,
        **about,
        "preprocessing": preprocessing,
    }


def found_records(root: Path, wanted: dict[str, Any]) -> list[Record]:
    """What an earlier encode into this folder has recorded, finished or not.

    Raises:
        UsageError: it was another model's, or one with other settings.
        ModelError: its manifest is damaged.
    """
    before, records = read_journals(root)
    if (root / MANIFEST).exists():
        try:
            manifest = read_manifest(root)
        except ModelError as error:
            raise ModelError(*error.problems, hint=OTHER) from error
        records = records_of(manifest)
        before = settings(
            manifest.layout,
            manifest.shard_size,
            manifest.model.weights_hash,
            manifest.latents,
            manifest.preprocessing,
        )
    if before is not None:
        _require_same(root, before, wanted)
    return records


def _require_same(root: Path, before: dict[str, Any], wanted: dict[str, Any]) -> None:
    if before.get("weights_hash") != wanted["weights_hash"]:
        whose = str(before.get("weights_hash"))[:12]
        raise UsageError(f"holds latents of another model (weights {whose})", where=str(root), hint=OTHER)
    other = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
    if other:
        named = [f"{OPTIONS.get(key, key)}: {before.get(key)}, not {wanted.get(key)}" for key in other]
        raise UsageError(
            f"holds latents of this model that were made otherwise ({'; '.join(named)})", where=str(root), hint=OTHER
        )


def discard_latents(folder: OutputFolder) -> None:
    """Remove the latents of an earlier encode, the manifest first, so that no reader takes old ones for new."""
    try:
        records = records_of(read_manifest(folder.root))
    except ModelError:  # there is none, or it cannot be trusted to name what may be removed
        records = read_journals(folder.root)[1]
    suffixes = tuple({layout.suffix for layout in LAYOUTS.values()})
    old = [file.path for record in records for file in record.files if file.path.endswith(suffixes)]
    shards = (path.relative_to(folder.root).as_posix() for path in folder.root.glob("*/*shard*.*"))
    for name in dict.fromkeys([MANIFEST, *old, *filter(LEFT_BEHIND.fullmatch, shards)]):
        folder.remove(name)
    close_journals(folder.root)
