"""The settings of a config file: one class per table, one line per key. `docs/config.md` is generated from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, Strict, model_validator


class RelativePath:
    """Marks a key whose value is a path relative to the file that it stands in; `loading.py` resolves it."""


def parse_shape(value: object) -> object:
    """`"3x256x256"` -> `(3, 256, 256)`; tuples pass."""
    if isinstance(value, tuple):
        return value
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})+", value, re.ASCII):
        raise ValueError("wants channels x size, as in '3x256x256'")
    return tuple(int(n) for n in value.split("x"))


def parse_bytes(value: object) -> object:
    """`"24GiB"` -> bytes; decimal (MB, GB) and binary (MiB, GiB) units; a plain number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = value.strip() if isinstance(value, str) else ""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([KMGT]i?)?B?", text, re.ASCII)
    if not match:
        raise ValueError("wants a size such as '512MiB' or '24GiB'")
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return int(float(match[1]) * base ** ("KMGT".index(unit[0]) + 1 if unit else 0))


def parse_path(value: object) -> object:
    """Refuses what no file can be called."""
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("wants a path")
    return value


AnyPath = Annotated[Path, Strict(False), RelativePath(), BeforeValidator(parse_path, json_schema_input_type=str)]
Source = Annotated[str, RelativePath(), BeforeValidator(parse_path, json_schema_input_type=str)]
Shape = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Field(min_length=2),
    PlainSerializer(lambda shape: "x".join(str(n) for n in shape), return_type=str, when_used="json"),
    BeforeValidator(parse_shape, json_schema_input_type=str),
]
Bytes = Annotated[int, Field(ge=1), BeforeValidator(parse_bytes, json_schema_input_type=int | str)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)


class ModelTable(Table):
    """The autoencoder: two structure files and what stands between them."""

    encoder: AnyPath = Field(description="structure file of the encoder")
    decoder: AnyPath = Field(description="structure file of the decoder")
    bottleneck: str = Field(
        "KL", description="code of the bottleneck: `KL` (variational) or `None` (plain autoencoder)"
    )
    init: AnyPath | None = Field(None, description="a trained model whose weights training starts from")


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
    workers: NonNegative = Field(2, description="processes that read and decode; 0 reads in the training process")
    cache: Bytes = Field(
        "256MiB", description="decoded images kept in memory, per reading process", validate_default=True
    )


class LossTable(Table):
    """`L = alpha * reconstruction + kld_weight * KLD + ssim_metrics * beta * (1 - SSIM) + sparse_metrics * sparse`."""

    reconstruction: str = Field("mse", description="code of the reconstruction loss: `mse`, `l1`, `huber_0.1`, `bce`")
    alpha: Weight = Field(1.0, description="weight of the reconstruction loss")
    kld_weight: Weight = Field(
        1e-6, description="weight of the KL divergence (summed over a sample's latent, mean over samples)"
    )
    ssim_metrics: bool = Field(False, description="switches the SSIM term on")
    beta: Weight = Field(0.5, description="weight of the SSIM term")
    sparse_metrics: bool = Field(False, description="switches the sparse term on: mean absolute value of the latent")


class OptimizerTable(Table):
    """AdamW and gradient clipping."""

    name: Literal["adamw"] = Field("adamw", description="the optimizer")
    lr: Annotated[float, Field(gt=0)] = Field(4e-4, description="learning rate after warm-up")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999), description="decay of the running means of gradient and squared gradient"
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="added to the denominator")
    weight_decay: Weight = Field(0.01, description="decoupled weight decay")
    clip_norm: Weight = Field(1.0, description="largest norm of the whole gradient; 0 switches clipping off")


class ScheduleTable(Table):
    """The learning rate over the steps."""

    name: Literal["constant", "cosine", "step"] = Field("cosine", description="shape of the schedule after warm-up")
    warmup_steps: NonNegative = Field(0, description="steps of linear warm-up from 0")
    step_size: Positive = Field(1000, description="`step`: the rate is multiplied by `gamma` every so many steps")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="`step`: the factor")
    final: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="`cosine`: the last rate, as a fraction of `lr`"
    )


class TrainTable(Table):
    """The run."""

    run_dir: AnyPath = Field(description="where the run is kept: checkpoints, metrics, previews, log")
    max_steps: Positive | None = Field(None, description="optimizer steps to take; give this or `epochs`")
    epochs: Positive | None = Field(None, description="passes over the training source; give this or `max_steps`")
    batch_size: Positive = Field(8, description="samples per optimizer step")
    accumulate: Positive = Field(1, description="micro-batches that a step is cut into, to save memory")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")] = Field(
        "auto",
        examples=["auto", "cpu", "cuda", "cuda:1", "mps"],
        description="`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="all randomness follows from it")
    log_every: Positive = Field(10, description="steps between lines of the log")
    validate_every: Positive = Field(500, description="steps between validations")
    preview_every: NonNegative = Field(500, description="steps between preview pictures; 0 switches them off")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints; the last step is always saved")
    keep_last: Annotated[int, Field(ge=2)] = Field(2, description="checkpoints kept, the newest ones")
    allocator: Literal["keep", "system"] = Field(
        "keep",
        description="`keep` holds on to freed memory (faster on Linux, 10 to 20 % more memory), `system` returns it",
    )

    @model_validator(mode="after")
    def _length(self) -> TrainTable:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("wants max_steps or epochs, and only one of them")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"cannot accumulate {self.accumulate} parts of a batch of {self.batch_size}; use at most batch_size"
            )
        return self


class InferTable(Table):
    """Defaults of `flexvae infer`."""

    input: Source | None = Field(None, description="an image or a folder of images, or `builtin:scenery/val`")
    output: AnyPath | None = Field(None, description="the folder that the reconstructions go to")


class EncodeTable(Table):
    """Defaults of `flexvae encode`."""

    input: Source | None = Field(None, description="an image or a folder of images, or `builtin:scenery/val`")
    output: AnyPath | None = Field(None, description="the folder that the latents go to")
    format: Literal["shards", "files"] = Field(
        "shards",
        description="`shards`: safetensors with many latents each; `files`: one per image, mirroring the folders",
    )


class MemTable(Table):
    """Defaults of `flexvae mem`."""

    memory: Bytes | None = Field(None, description="the memory to fill, as in `24GiB`; by default what the device has")


class PluginsTable(Table):
    """Which distribution wins where several bring the same code."""

    prefer: dict[str, str] = Field({}, description='code -> distribution, as in `prefer = { Snake = "flexvae-audio" }`')


class Settings(Table):
    """A whole config."""

    model: ModelTable
    data: DataTable
    loss: LossTable = LossTable()
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    train: TrainTable
    infer: InferTable = InferTable()
    encode: EncodeTable = EncodeTable()
    mem: MemTable = MemTable()
    plugins: PluginsTable = PluginsTable()
