"""A file of latents, opened with suspicion: it must hold what the manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flexvae_cli.api.trace import text
from flexvae_cli.engine.latents.containers import LABELS, LAYOUTS
from flexvae_cli.engine.latents.values import INDICES, Row, Values
from flexvae_cli.engine.reading import digest_of, reading, regular
from flexvae_cli.errors import ModelError

if TYPE_CHECKING:
    from flexvae_cli.engine.manifest import LatentFile


def verified_file(folder: Path, file: LatentFile, layout: str, values: Values) -> Row:
    """The tensors of a file that was read through and through.

    Raises:
        ModelError: it is missing, a link, damaged, not what the manifest says, or holds numbers that are not finite.
    """
    path = folder / file.path
    if path.resolve() != folder.resolve() / file.path:
        raise ModelError("is a link, which is not followed", where=str(path))
    with reading(path):
        if regular(path).stat().st_size != file.bytes or digest_of(path).sha256 != file.sha256:
            raise ModelError("is damaged or replaced: its content is not what the manifest records", where=str(path))
    row = open_latents(folder, file, layout, values)
    for key, tensor in row.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(f"holds {key} that are not finite", where=str(path))
    if values.normalization is not None and not bool(values.raw(row).isfinite().all()):
        raise ModelError("holds latents that are not finite once they are raw", where=str(path))
    return row


def open_latents(folder: Path, file: LatentFile, layout: str, values: Values) -> Row:
    """The tensors of a file, mapped into memory where the layout allows it.

    Raises:
        ModelError: it is missing, or they are not what the manifest says.
    """
    path = folder / file.path
    how = LAYOUTS[layout]
    row = how.unpack(path, values.keys)
    for key in values.keys:
        dtype, shape = values.expected(key, file.count, file.shape)
        if key not in row or row[key].dtype != dtype or row[key].shape != shape:
            kind = f"packed {INDICES}" if values.width else f"numbers of {str(dtype).removeprefix('torch.')}"
            says = f"{text((file.count, *file.shape))} {kind}" if shape[1:] == file.shape or values.width else kind
            raise ModelError(f"lacks '{key}', {says}, as the manifest says", where=str(path))
    if how.many and (LABELS not in row or row[LABELS].dtype != torch.int64 or row[LABELS].shape != (file.count,)):
        raise ModelError(f"lacks '{LABELS}', a number for each latent", where=str(path))
    return row
