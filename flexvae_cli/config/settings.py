"""The settings of a config file: one class per table, one line per key. `docs/config.md` is generated from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
    model_validator,
)


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
Fraction = Annotated[float, Field(ge=0, le=1)]
Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]


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
    timeout: Positive = Field(
        120, description="seconds without a batch after which the reading processes count as hung"
    )
    workers: NonNegative = Field(2, description="processes that read and decode; 0 reads in the training process")
    cache: Bytes = Field(
        "256MiB", description="decoded images kept in memory, per reading process", validate_default=True
    )


class TermTable(Table):
    """One more term of the loss; every further key is a parameter of that loss, as `flexvae layers NAME` lists them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(description="name of the loss: `charbonnier`, `msssim`, `lpips`, or one that a plugin brings")
    weight: Weight = Field(1.0, description="factor on the term")
    start: NonNegative = Field(0, description="the step from which the term counts")
    warmup: NonNegative = Field(0, description="steps over which its weight rises from 0, linearly, from `start` on")
    weights: AnyPath | None = Field(None, description="file of trained weights, for the losses that need one")


class LossTable(Table):
    """`L = alpha * reconstruction + kld_weight * KLD + ssim_metrics * beta * (1 - SSIM) + sparse_metrics * sparse`."""

    reconstruction: str = Field(
        "mse", description="code of the reconstruction loss, as in `mse`, `l1`, `huber_0.1`, `bce`"
    )
    alpha: Weight = Field(1.0, description="weight of the reconstruction loss")
    kld_weight: Weight = Field(
        1e-6, description="weight of the KL divergence (summed over a sample's latent, mean over samples)"
    )
    kld_schedule: Literal["constant", "linear", "cyclical"] = Field(
        "constant",
        description="`linear` raises the KL weight from 0 over `kld_warmup_steps`; `cyclical` does so anew in every "
        "`kld_cycle_steps`",
    )
    kld_warmup_steps: NonNegative = Field(0, description="steps until the KL weight is reached")
    kld_cycle_steps: NonNegative = Field(0, description="`cyclical`: steps of a cycle")
    free_bits: Weight = Field(
        0.0, description="nats per latent element below which a latent channel's KL is not pushed further down"
    )
    kld_target: Annotated[float, Field(gt=0)] | None = Field(
        None, description="rate to hold, in nats per latent element: a controller moves the KL weight from `kld_weight`"
    )
    quantizer_weight: Weight = Field(1.0, description="weight of the quantizers' own losses")
    ssim_metrics: bool = Field(False, description="switches the SSIM term on")
    beta: Weight = Field(0.5, description="weight of the SSIM term")
    sparse_metrics: bool = Field(False, description="switches the sparse term on: mean absolute value of the latent")
    term: Annotated[tuple[TermTable, ...], Field(strict=False)] = Field((), description="more terms, see below")


class LossChanges(LossTable):
    """The keys of `[loss]` that a phase changes; the others stay as they are."""

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}


UNUSED_BY_OPTIMIZER = {"sgd": ("betas", "eps"), "rmsprop": (), "adafactor": ("betas", "eps", "momentum")}


class GroupTable(Table):
    """Parameters that are treated in their own way; of several groups that match, the first counts."""

    match: Patterns = Field(description="patterns of parameter names, as in `encoder.*` or `*.bias`")
    lr_factor: Weight = Field(1.0, description="factor on the learning rate")
    weight_decay: Weight | None = Field(None, description="instead of the optimizer's")


class OptimizerTable(Table):
    """The optimizer and gradient clipping."""

    name: Literal["adamw", "adam", "sgd", "adafactor", "nadam", "radam", "rmsprop"] = Field(
        "adamw", description="the optimizer, as torch ships it"
    )
    lr: Annotated[float, Field(gt=0)] = Field(4e-4, description="learning rate after warm-up")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999),
        description="decay of the running means of gradient and squared gradient; `rmsprop` has the second alone",
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="added to the denominator")
    momentum: Decay = Field(0.0, description="`sgd` and `rmsprop`: momentum; with `sgd` in Nesterov's form")
    weight_decay: Weight = Field(0.01, description="weight decay; decoupled from the gradient with `adamw`")
    decay_norms_and_biases: bool = Field(False, description="whether parameters of one axis decay as well")
    clip_norm: Weight = Field(1.0, description="largest norm of the whole gradient; 0 switches clipping off")
    group: Annotated[tuple[GroupTable, ...], Field(strict=False)] = Field((), description="exceptions, see below")

    @model_validator(mode="after")
    def _of_use(self) -> OptimizerTable:
        useless = UNUSED_BY_OPTIMIZER.get(self.name, ("momentum",))
        defaults = type(self).model_fields
        given = [key for key in useless if getattr(self, key) != defaults[key].default]
        if given:
            raise ValueError(f"has {given[0]}, of which {self.name} makes no use; leave it out")
        return self


class DiscriminatorOptimizerTable(OptimizerTable):
    """The discriminator's own optimizer; the schedule is the one of `[schedule]`."""

    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="learning rate after warm-up")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.5, 0.9), description="decay of the running means of gradient and squared gradient"
    )
    weight_decay: Weight = Field(0.0, description="weight decay; decoupled from the gradient with `adamw`")


class AdversarialTable(Table):
    """Adversarial training: a discriminator learns to tell reconstructions from samples, the autoencoder to pass."""

    discriminator: AnyPath = Field(description="structure file of the discriminator; its output is a map of logits")
    loss: Literal["hinge", "non-saturating", "least-squares"] = Field("hinge", description="the adversarial loss")
    weight: Weight = Field(0.5, description="weight of the autoencoder's adversarial loss")
    adaptive: bool = Field(
        True,
        description="multiplies the weight by the ratio of the gradient norms of the other losses and of the "
        "adversarial one at the decoder's last layer",
    )
    max_weight: Annotated[float, Field(gt=0)] = Field(1e4, description="`adaptive`: largest ratio")
    start: NonNegative = Field(0, description="the step from which discriminator and adversarial loss take part")
    r1: Weight = Field(
        0.0, description="weight of the R1 penalty: squared gradient norm of the discriminator at samples"
    )
    r1_every: Positive = Field(16, description="steps between R1 penalties, each weighted by so many")
    lecam: Weight = Field(0.0, description="weight of the LeCam regularization")
    optimizer: DiscriminatorOptimizerTable = DiscriminatorOptimizerTable()


class ScheduleTable(Table):
    """The learning rate over the steps."""

    name: Literal["constant", "cosine", "step", "one-cycle", "plateau"] = Field(
        "cosine", description="shape of the schedule after warm-up"
    )
    warmup_steps: NonNegative = Field(0, description="steps of linear warm-up from 0")
    step_size: Positive = Field(1000, description="`step`: the rate is multiplied by `gamma` every so many steps")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="`step` and `plateau`: the factor")
    final: Fraction = Field(0.0, description="`cosine` and `one-cycle`: the last rate, as a fraction of `lr`")
    initial: Fraction = Field(0.04, description="`one-cycle`: the first rate, as a fraction of `lr`")
    peak: Fraction = Field(0.3, description="`one-cycle`: where `lr` is reached, as a fraction of the steps")
    patience: NonNegative = Field(
        5, description="`plateau`: validations without a lower validation loss that are waited for"
    )
    threshold: Fraction = Field(1e-3, description="`plateau`: the part by which the loss must fall to count as lower")

    @model_validator(mode="after")
    def _rise(self) -> ScheduleTable:
        if self.name == "one-cycle" and self.warmup_steps:
            raise ValueError("has warmup_steps, but one-cycle rises by itself; set initial and peak instead")
        return self


class EmaTable(Table):
    """A running mean of the weights; validation, previews and everything that reads the model use it."""

    decay: Decay = Field(0.0, description="decay per optimizer step, such as 0.999; 0 switches the mean off")
    warmup: bool = Field(True, description="whether the decay rises as (1 + steps) / (10 + steps) until it is reached")


class TrainTable(Table):
    """The run."""

    run_dir: AnyPath = Field(description="where the run is kept: checkpoints, metrics, previews, log")
    max_steps: Positive | None = Field(None, description="optimizer steps to take; give this or `epochs`")
    epochs: Positive | None = Field(None, description="passes over the training source; give this or `max_steps`")
    batch_size: Positive = Field(8, description="samples per optimizer step, over all processes")
    accumulate: Positive = Field(1, description="micro-batches that a step is cut into per process, to save memory")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)$")] = Field(
        "auto",
        examples=["auto", "cpu", "cuda", "cuda:1", "mps"],
        description="`auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="of the nets' arithmetic; weights, optimizer and losses stay in fp32. `auto` is bf16 on a GPU that "
        "has it, else fp32",
    )
    norm_dtype: Literal["fp32", "input"] = Field(
        "fp32",
        description="under bf16 and fp16: what normalization layers and the activations behind them compute and keep; "
        "`input` saves memory",
    )
    layout: Literal["auto", "contiguous", "channels-last"] = Field(
        "auto", description="memory layout of the nets; `auto` is channels-last on a GPU under bf16 and fp16"
    )
    activation_checkpointing: Literal["off", "blocks"] | Patterns = Field(
        "off",
        description="recomputes activations in the backward pass instead of keeping them: `blocks` (every entry that "
        "has parts), or a list of entries, as in `encoder.0`",
    )
    compile: bool = Field(False, description="compiles encoder and decoder with torch.compile")
    deterministic: bool = Field(
        False, description="only deterministic algorithms, for bit-identity on a GPU; slower there, no change on a CPU"
    )
    freeze: Patterns = Field((), description="patterns of parameters that are not trained, as in `encoder.*`")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="all randomness follows from it")
    log_every: Positive = Field(10, description="steps between lines of the log")
    validate_every: Positive = Field(500, description="steps between validations")
    preview_every: NonNegative = Field(500, description="steps between preview pictures; 0 switches them off")
    checkpoint_every: Positive = Field(500, description="steps between checkpoints; the last step is always saved")
    checkpoint_minutes: Weight = Field(
        0.0, description="minutes after which a checkpoint is written whatever the step; 0 switches that off"
    )
    keep_last: Annotated[int, Field(ge=2)] = Field(2, description="checkpoints kept, the newest ones")
    keep_best: Literal["off", "psnr", "ssim", "loss"] = Field(
        "off", description="also keeps the checkpoint whose validation was best in this, and links `best` to it"
    )
    disk_full_wait: Weight = Field(
        600.0,
        description="seconds that a checkpoint waits for room on a full disk, before the run ends with exit code 5",
    )
    allocator: Literal["keep", "system"] = Field(
        "keep",
        description="`keep` holds on to freed memory (faster on Linux, 10 to 20 % more memory), `system` returns it",
    )

    @model_validator(mode="after")
    def _length(self) -> TrainTable:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("wants max_steps or epochs, and only one of them")
        if self.compile and self.activation_checkpointing != "off":
            raise ValueError("has compile and activation_checkpointing, and torch cannot compile what it recomputes")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"cannot accumulate {self.accumulate} parts of a batch of {self.batch_size}; use at most batch_size"
            )
        return self


class PhaseTable(Table):
    """A change in the course of a run, from a step on; what a phase does not name stays as it was before."""

    start: Positive = Field(description="the step from which it holds")
    freeze: Patterns | None = Field(None, description="instead of `train.freeze`")
    input: Shape | None = Field(None, description="instead of `data.input`")
    loss: LossChanges = Field(LossChanges(), description="keys of `[loss]`, as in `loss = { alpha = 2.0 }`")


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
    adversarial: AdversarialTable | None = None
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    ema: EmaTable = EmaTable()
    train: TrainTable
    phase: Annotated[tuple[PhaseTable, ...], Field(strict=False)] = ()
    infer: InferTable = InferTable()
    encode: EncodeTable = EncodeTable()
    mem: MemTable = MemTable()
    plugins: PluginsTable = PluginsTable()


def table_in(annotation: object) -> type[BaseModel] | None:
    """The class of the table, or of the tables in the list, that a key of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((t for t in map(table_in, get_args(annotation)) if t), None)
