"""`[train]`, `[ema]` and `[[phase]]`: how long, how, and what changes on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flexvae_cli.config.settings.loss import LossChanges
from flexvae_cli.config.settings.values import AnyPath, Decay, NonNegative, Patterns, Positive, Shape, Table, Weight


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
        "auto",
        description="memory layout of the nets; `auto` is channels-last under bf16 and fp16, on a CPU only where "
        "layers are fused",
    )
    fuse: Literal["auto", "on", "off"] = Field(
        "auto",
        description="layers that follow each other compute as one, the same up to rounding: `auto` where that was "
        "measured to be faster, `on` wherever it can be done",
    )
    activation_checkpointing: Literal["off", "blocks"] | Patterns = Field(
        "off",
        description="recomputes activations in the backward pass instead of keeping them: `blocks` (every entry that "
        "has parts), or a list of entries, as in `encoder.0`",
    )
    compile: bool | Literal["reduce-overhead", "max-autotune"] = Field(
        False,
        description="compiles encoder and decoder with torch.compile; a word is its mode: `reduce-overhead` replays "
        "CUDA graphs, `max-autotune` tries kernels as well",
    )
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
        description="`keep` holds on to freed memory (faster on Linux, takes more memory) and lets segments grow on "
        "CUDA (`expandable_segments`, unless PYTORCH_ALLOC_CONF is set); `system` does neither",
    )

    @model_validator(mode="after")
    def _length(self) -> TrainTable:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("wants max_steps or epochs, and only one of them")
        if self.compile and self.activation_checkpointing != "off":
            raise ValueError("has compile and activation_checkpointing, and torch cannot compile what it recomputes")
        if self.compile and self.fuse == "on":
            raise ValueError("has compile and fuse = 'on'; what is compiled, the compiler fuses")
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
