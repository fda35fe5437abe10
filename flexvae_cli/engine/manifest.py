"""`manifest.json`: what is in a folder of latents, and which model made them.

It is written last, so that its presence says that the rest is complete, and it is read with suspicion.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from flexvae_cli.engine.naming import MOST_BYTES as MOST_NAME_BYTES
from flexvae_cli.engine.reading import read_json, seal_of
from flexvae_cli.errors import ModelError, Problem

FORMAT = 2
READ = (1, 2)  # format 1 lacks the sources of the images and the error of what is stored
MANIFEST = "manifest.json"
MOST_BYTES = 1 << 30  # of a manifest; a million images take about 150 MB
MOST_PROBLEMS = 5  # named in an error


def safe_name(value: object) -> str:
    """A path below a folder, with forward slashes.

    Raises:
        ValueError: it is none, or leads elsewhere.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("wants a path below the folder")
    # compared part by part, since PurePosixPath drops what it finds superfluous
    if any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError("wants a path that stays below the folder")
    if any(len(os.fsencode(part)) > MOST_NAME_BYTES for part in PurePosixPath(value).parts):
        raise ValueError("wants names of at most 255 bytes")
    return value


def any_text(value: object) -> str:
    """A string.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str):
        raise ValueError("wants a string")
    return value


# pydantic's own str refuses file names that are not UTF-8
Name = Annotated[Any, PlainValidator(safe_name)]
Text = Annotated[Any, PlainValidator(any_text)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Extent = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StoredError(Entry):
    """What rounding to the stored type cost, in the unit of what is stored.

    Attributes:
        rms: root of the mean squared difference from fp32.
        max: the greatest difference.
    """

    rms: Annotated[float, Field(ge=0)]
    max: Annotated[float, Field(ge=0)]


class LatentFile(Entry):
    """A file of latents.

    Attributes:
        path: below the folder.
        sha256, bytes: of its content.
        count: latents in it.
        shape: (c, h, w) of each, or (q, h, w) where these are indices.
        error: what rounding cost, where the type is not that of the net's output.
    """

    path: Name
    sha256: Sha256
    bytes: Count
    count: Extent
    shape: Annotated[tuple[Extent, ...], Field(strict=False)]
    error: StoredError | None = None


class ImageSource(Entry):
    """The content of an image file when it was encoded.

    Attributes:
        bytes, mtime_ns: its size and when it was last modified, in nanoseconds since 1970.
        sha256: of its content.
        about: what it says of itself that its kind needs when it is written: rate, affine, type; empty for images.
    """

    bytes: Count
    mtime_ns: int
    sha256: Sha256
    about: dict[str, Any] = {}


class LatentImage(Entry):
    """The latent of one image.

    Attributes:
        name: the image's path below the input folder.
        file: which file the latent is in.
        index: which latent of that file.
        size: (height, width) of the image.
        label: which of the manifest's labels it has.
        source: the image file; None in a manifest of format 1.
    """

    name: Name
    file: Name
    index: Count
    size: Annotated[tuple[Extent, ...], Field(strict=False, min_length=1)]
    label: Count
    source: ImageSource | None = None


class Failure(Entry):
    """An image that could not be read."""

    name: Name
    reason: Text


class Latents(Entry):
    """What the numbers are.

    Attributes:
        value: `moments` of the posterior (mean and deviation), its `mean`, a `sample` of it, the bottleneck's `output`
            where it has no posterior, or a quantizer's `indices`.
        scaling: `raw`: as the decoder takes them; `normalized`: less `mean` and divided by `std` of the statistics.
        flip: whether the files hold the latents of the mirrored images as well.
        statistics: per channel `mean` and `std` of the raw latents. For normalized ones, the very numbers that undo
            it; for raw ones, those that the model carries, empty where it carries none.
        dtype: `float32`, `float16`, `bfloat16`, `int8` with a scale and an offset for each channel of each latent, or
            `uint10` for indices of 10 bits: one behind the other, the lowest bit first.
        seed: what a `sample` was drawn from, together with the name of the image.
        precision: how the net computed.
        error: of all files together.
        tile: side in pixels of the tiles that the net ran in, which makes the latents approximate; None where it saw
            whole images.
    """

    value: Literal["moments", "mean", "sample", "output", "indices"]
    scaling: Literal["raw", "normalized"] = "raw"
    dtype: Annotated[str, Field(pattern=r"^(float32|float16|bfloat16|int8|uint([1-9]|[1-5][0-9]|6[0-2]))$")] = "float32"
    flip: bool
    statistics: dict[str, Any]
    seed: int | None = None
    precision: str = "fp32"
    error: StoredError | None = None
    tile: Extent | None = None


class Source(Entry):
    """The model that made the latents.

    Attributes:
        weights_hash: sha256 of its weights file.
        bottleneck, input, plugins: as in its own description.
    """

    weights_hash: Sha256
    bottleneck: str
    input: list[int]
    plugins: dict[str, Any]


class Manifest(Entry):
    """A folder of latents, in full; `images` is in the order in which they were encoded."""

    layout: Literal["shards", "files", "npy", "wds"]
    shard_size: Extent | None = None
    model: Source
    latents: Latents
    preprocessing: dict[str, Any]
    labels: list[Text]
    files: list[LatentFile]
    images: list[LatentImage]
    failures: list[Failure]


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as JSON: one line per key, and one per row of the tables."""
    content = {"format": FORMAT, **manifest.model_dump()}
    content["seal"] = seal_of(content)
    lines = [f"  {json.dumps(key)}: {_rows(value)}" for key, value in content.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _rows(value: Any) -> str:
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return json.dumps(value, allow_nan=False)
    return "[\n" + ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value) + "\n  ]"


def read_manifest(folder: Path) -> Manifest:
    """Read and check a manifest: its seal, its types, that every latent has one image and no path leads out.

    Raises:
        ModelError: what is wrong with it.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ModelError(
            f"holds no {MANIFEST}", where=str(folder), hint="give a folder that `flexvae encode` wrote to the end"
        )
    content = read_json(path, MOST_BYTES)
    version = content.pop("format", None)
    if version not in READ or isinstance(version, bool):
        raise ModelError(f"is of format {version!r}; this FlexVAE reads format {FORMAT} and older", where=str(path))
    if content.pop("seal", None) != seal_of({"format": version, **content}):
        raise ModelError("is damaged or was edited: its seal does not match its content", where=str(path))
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ModelError(*validation_problems(error, path)) from None
    _check_places(manifest, path)
    return manifest


def validation_problems(error: ValidationError, path: Path) -> list[Problem]:
    """What is wrong with the content of a file, the first five by name."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    problems = [
        Problem(f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}", where=str(path))
        for each in found[:MOST_PROBLEMS]
    ]
    more = len(found) - len(problems)
    return [*problems, Problem(f"and {more} more like these", where=str(path))] if more else problems


def _check_places(manifest: Manifest, path: Path) -> None:
    """Every latent of every file belongs to one image, and no image is there twice."""
    files = {file.path: file for file in manifest.files}
    places = {(image.file, image.index) for image in manifest.images}
    there = {(file.path, index) for file in manifest.files for index in range(min(file.count, len(manifest.images)))}
    total = sum(file.count for file in manifest.files)
    if len(files) < len(manifest.files) or places != there or total != len(manifest.images):
        raise ModelError("does not give every latent of every file to one image", where=str(path))
    if len({image.name for image in manifest.images}) < len(manifest.images):
        raise ModelError("names an image twice", where=str(path))
    if any(image.label >= len(manifest.labels) for image in manifest.images):
        raise ModelError("gives an image a label that it does not list", where=str(path))
