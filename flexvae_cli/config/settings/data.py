"""`[data]`: where samples come from, and what is done to them before the net sees them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from flexvae_cli.config.settings.values import AnyPath, Bytes, NonNegative, Positive, Shape, Source, Table


class DataTable(Table):
    """What to train on, and how a file becomes a sample. Where `reader` is named, further keys are parameters of it.

    `resize`, `max_aspect_ratio`, `min_size`, `background`, `exif` and `draft` are about images. Files of other kinds
    keep their own size, and training crops them: the sizes of `input` are the length of a window, or the sides of a
    crop.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    source: Source = Field(
        description="a folder of images, sounds, volumes or arrays, or of tars of them, one file, or `builtin:scenery`"
    )
    input: Shape = Field(
        description="channels x size of a training sample: `3x256x256`, `1x16000` of a signal, `1x64x64x64` of a volume"
    )
    reader: Annotated[str, Field(max_length=32)] | None = Field(
        None,
        description="what reads the files: `images`, `audio`, `volumes`, `arrays`, `latents`, or one that a plugin "
        "brings; by default the first of these that fits `input` and finds files",
    )
    validation: Annotated[float, Field(ge=0, lt=1)] | Source = Field(
        0.1,
        description="a fraction of the source, held out by file name, or a source of its own; 0 switches it off",
    )
    resize: Literal["cover", "none"] = Field(
        "cover",
        description="`cover` scales an image down until it just covers the input; `none` crops at native resolution",
    )
    max_aspect_ratio: Annotated[float, Field(ge=1, le=16)] = Field(
        1.0,
        description="aspect-ratio buckets: training scales an image to the nearest of several shapes, of at most as "
        "many pixels as `input`, up to this ratio of their sides; a step has one shape. 1 is that of `input` alone",
    )
    crop: Literal["random", "center"] = Field(
        "random", description="where training crops; everything else crops the centre"
    )
    flip: bool = Field(
        True, description="mirror training images left to right at random; signals and volumes never are"
    )
    min_size: NonNegative = Field(
        0, description="images with a shorter side are skipped and reported; 0 stands for the sides of `input`"
    )
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = Field(
        "#ffffff",
        examples=["#ffffff", "#808080"],
        description="colour under transparent pixels where the input has no alpha channel",
    )
    exif: bool = Field(True, description="turn photographs upright by their EXIF orientation")
    max_pixels: Positive = Field(
        64_000_000,
        description="larger files are refused from their header, before decoding; of sounds and volumes samples count",
    )
    max_bad: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="the part of all files that may be unusable: with more, and more than ten, training ends with exit "
        "code 3; every one is reported",
    )
    draft: bool = Field(
        True,
        description="decode JPEGs that are scaled down at 1/2, 1/4 or 1/8 of their size where that is enough: several "
        "times faster, and nearly the same pixels",
    )
    timeout: Positive = Field(
        120, description="seconds without a batch after which the reading processes count as hung"
    )
    workers: NonNegative = Field(2, description="processes that read and decode; 0 reads in the training process")
    cache: Bytes = Field(
        "256MiB", description="decoded images kept in memory, per reading process", validate_default=True
    )
    cache_dir: AnyPath | None = Field(
        None,
        description="a folder that keeps images on disk as they are once decoded and scaled, for later epochs, other "
        "processes and later runs; by default nothing is kept there",
    )
