"""The latents of a run's newest model, measured on the images that its previews show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.choosing import found_in
from flexvae_cli.engine.data.dataset import EvaluationImages, Sample
from flexvae_cli.engine.data.sources import split
from flexvae_cli.engine.evaluation.channels import LatentStatistics
from flexvae_cli.engine.model import Model, load
from flexvae_cli.engine.source import STRIP, preparation_for, reader_of
from flexvae_cli.errors import DataError, ModelError

AFFORDABLE = 10**12  # multiply-adds: some seconds of two cores


def measured(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `LatentStatistics.values` says, and the `checkpoint` that it is true of.

    Fewer images are taken, one at the least, where the encoder is so large that eight of them would take long.

    Args:
        run: its directory.
        settings: the resolved settings, as JSON values.

    Raises:
        FlexVAEError: there is no model yet, its plugins are missing, or the images cannot be read any more.
    """
    model = load(run)
    macs = model.net.traces(model.net.shape, [])[0].macs
    statistics = LatentStatistics()
    with torch.inference_mode():
        for x in images_of(model, settings.get("data"), max(1, min(STRIP, AFFORDABLE // max(1, macs)))):
            encoded = model.encoded(x[None])
            if bool(torch.isfinite(encoded.z).all()):
                statistics.add(encoded)
    if not statistics.images:
        raise DataError("the latents are not finite")
    return {"checkpoint": model.path.name, **statistics.values()}


def images_of(model: Model, table: Any, count: int) -> Tensor:
    """The first readable validation images (b, c, h, w), or training images where none are held out.

    Args:
        model: what is to take them.
        table: `[data]` of the run's settings, as JSON values.
        count: most of them.

    Raises:
        ModelError: that is no such table.
        DataError: none can be read any more.
    """
    try:
        data = DataTable.model_validate_json(json.dumps(table))
    except ValidationError:
        raise ModelError("the settings of the run are of another FlexVAE", where=str(model.path)) from None
    validation = data.validation
    chosen, items = reader_of(data)
    if isinstance(validation, str):
        items = found_in(chosen, validation, "data.validation")
    else:
        training, held_out = split(items, validation)
        items = held_out or training
    images, found = EvaluationImages(items, preparation_for(data, chosen)), list[Tensor]()
    for index in range(len(items)):
        sample = images[index]
        if isinstance(sample, Sample) and sample.x.shape[0] == model.net.shape[0]:
            found.append(sample.x)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"none of the {len(items)} images can be read any more")
    return torch.stack(found)
