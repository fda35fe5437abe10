"""`[data]`: where samples come from, and what is done to them before the net sees them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flexvae_cli.config.settings.values import Bytes, NonNegative, Positive, Shape, Source, Table


class DataTable(Table):
    """What to train on, and how an image becomes a sample."""

    source: Source = Field(description="a folder of images, or `builtin:scenery`")
    input: Shape = Field(description="channels x height x width of a training sample, as in `3x256x256`")
    validation: Annotated[float, Field(ge=0, lt=1)] | Source = Field(
        0.1,
        description="a fraction of the source, held out by file name, or a source of its own; 0 switches it off",
    )
    resize: Literal["cover", "none"] = Field(
        "cover",
        description="`cover` scales an image down until it just covers the input; `none` crops at native resolution",
    )
    crop: Literal["random", "center"] = Field(
        "random", description="where training crops; everything else crops the centre"
    )
    flip: bool = Field(True, description="mirror training samples left to right at random")
    min_size: NonNegative = Field(
        0, description="images with a shorter side are skipped and reported; 0 stands for the sides of `input`"
    )
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = Field(
        "#ffffff",
        examples=["#ffffff", "#808080"],
        description="colour under transparent pixels where the input has no alpha channel",
    )
    exif: bool = Field(True, description="turn photographs upright by their EXIF orientation")
    max_pixels: Positive = Field(64_000_000, description="larger images are refused from their header, before decoding")
    timeout: Positive = Field(
        120, description="seconds without a batch after which the reading processes count as hung"
    )
    workers: NonNegative = Field(2, description="processes that read and decode; 0 reads in the training process")
    cache: Bytes = Field(
        "256MiB", description="decoded images kept in memory, per reading process", validate_default=True
    )
