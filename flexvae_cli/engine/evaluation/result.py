"""The result of an evaluation: put together, written as JSON and CSV, and read back with suspicion."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from flexvae_cli.engine.evaluation.intervals import bootstrap_interval
from flexvae_cli.engine.evaluation.measures import MEASURES
from flexvae_cli.engine.manifest import Extent, Sha256, Text, validation_problems
from flexvae_cli.engine.reading import read_json
from flexvae_cli.errors import DataError, ModelError

if TYPE_CHECKING:
    from flexvae_cli.engine.data.dataset import Fault
    from flexvae_cli.engine.evaluation.measuring import Instruments, Measured

FORMAT = 1
KIND = "flexvae eval"
JSON_NAME, CSV_NAME = "eval.json", "eval.csv"
MOST_BYTES = 1 << 28  # of a result; a million images take about 250 MB
_HINT = "give a file or a folder that `flexvae eval --output` wrote"

Number = Annotated[float, Field(ge=-1e15, le=1e15)]


class Row(BaseModel):
    """One image; `identical` stands for an infinite PSNR, which JSON cannot say."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    name: Text
    size: Annotated[tuple[Extent, ...], Field(strict=False, min_length=1, max_length=3)]
    identical: bool
    psnr: Number | None = None
    ssim: Number | None = None
    ms_ssim: Number | None = None
    mae: Number | None = None
    lpips: Number | None = None
    rate: Number | None = None

    def value(self, key: str) -> float | None:
        """A measure by its key in `MEASURES`."""
        found: float | None = math.inf if key == "psnr" and self.identical else getattr(self, key)
        return found


class Measurand(BaseModel):
    """What was measured."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    path: Text
    weights: Literal["ema", "raw"]
    weights_hash: Sha256


class Evaluation(BaseModel):
    """The result of `flexvae eval`, as far as a comparison needs it."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    kind: Literal["flexvae eval"]
    model: Measurand
    protocol: dict[str, JsonValue]
    rfid: Number | None = None
    images: Annotated[list[Row], Field(min_length=1)]


def summary(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean, its 95 % interval, median and extremes of the finite values; None where there are none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return None
    interval = bootstrap_interval(finite)
    return {
        "count": len(finite),
        "mean": math.fsum(finite) / len(finite),
        "interval": None if interval is None else list(interval),
        "median": float(np.median(finite)),
        "min": min(finite),
        "max": max(finite),
    }


def result_of(
    each: Sequence[Measured], faults: Iterable[Fault], instruments: Instruments, **about: Any
) -> dict[str, Any]:
    """The whole result, of JSON values.

    Args:
        each: the images.
        faults: the files that could not be read.
        instruments: what they were measured with.
        about: what else is to be said, put first: `model`, `made_with`, `protocol`.
    """
    totals = {m.key: summary(image.values[m.key] for image in each) for m in MEASURES}
    rows = [_row(image) for image in each]
    rfid = instruments.fid.value() if instruments.fid else None
    absent = {m.key: m.lacking for m in MEASURES if totals[m.key] is None}
    if instruments.lpips is None:
        absent["lpips"] = "give --lpips FILE"
    if rfid is None:
        absent["rfid"] = "it takes two images or more" if instruments.fid else "give --inception FILE"
    return {
        "kind": KIND,
        "format": FORMAT,
        **about,
        "count": len(rows),
        "identical": sum(row["identical"] for row in rows),
        "totals": {key: found for key, found in totals.items() if found is not None},
        "rfid": rfid,
        "not_measured": absent,
        "failures": [fault._asdict() for fault in faults],
        "images": rows,
    }


def _row(image: Measured) -> dict[str, Any]:
    values = {key: None if value == math.inf else value for key, value in image.values.items()}
    return {
        "name": image.name,
        "size": list(image.size),
        "identical": image.values["psnr"] == math.inf,
        **values,
    }


SIDES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}  # by the number of axes


def csv_bytes(result: dict[str, Any]) -> bytes:
    """One line per image: name, sizes and every measure that some image has; an infinite PSNR is `inf`."""
    keys = list(result["totals"]) if not result["identical"] else list(dict.fromkeys(["psnr", *result["totals"]]))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    axes = len(result["images"][0]["size"]) if result["images"] else 2
    writer.writerow(["name", *SIDES[axes], *keys])
    for row in result["images"]:
        numbers = ["inf" if key == "psnr" and row["identical"] else row[key] for key in keys]
        writer.writerow([row["name"], *row["size"], *("" if n is None else n for n in numbers)])
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_result(path: Path) -> Evaluation:
    """Read a result and check its types.

    Args:
        path: the JSON file, or the folder that holds it as `eval.json`.

    Raises:
        DataError: there is none, or what is wrong with it.
    """
    path = path / JSON_NAME if path.is_dir() else path
    if not path.exists():
        raise DataError("no such result", where=str(path), hint=_HINT)
    try:
        return _checked(read_json(path, MOST_BYTES), path)
    except ModelError as error:
        raise DataError(*error.problems) from None


def _checked(content: dict[str, Any], path: Path) -> Evaluation:
    if content.get("kind") != KIND:
        raise DataError("is not a result of `flexvae eval`", where=str(path), hint=_HINT)
    if content.get("format") != FORMAT:
        what = f"is of format {content.get('format')!r}; this FlexVAE reads format {FORMAT}"
        raise DataError(what, where=str(path))
    try:
        found = Evaluation.model_validate(content)
    except ValidationError as error:
        raise DataError(*validation_problems(error, path)) from None
    if len({row.name for row in found.images}) < len(found.images):
        raise DataError("names an image twice", where=str(path))
    return found
