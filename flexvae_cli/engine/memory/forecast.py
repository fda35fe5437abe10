"""What a step needs on a GPU that need not be here: the question, the answer, and the process that finds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from flexvae_cli.engine.memory.child import raise_problems, reason, run_program
from flexvae_cli.engine.memory.devices import CONTEXT, NCCL, Gpu
from flexvae_cli.errors import FlexVAEError, ResourceError, UsageError

PROGRAM = "flexvae_cli.engine.memory.forecast_program"
TIME_LIMIT = 1800.0  # seconds
MARGINS = {"B": 0.05, "C": 0.06, "D": 0.07, "E": 0.08}
"""Of what is predicted, by its grade: workspaces are cuDNN's own answers, or by rule; layers were followed apart, as on
a CPU, or measured apart."""
Mode = Literal["train", "infer", "encode", "decode"]
Allocator = Literal["default", "expandable"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be predicted.

    Attributes:
        document: a config's document, see `Config`.
        config: the file that it came from.
        gpu: where.
        batch: samples in memory at once, to look at in detail.
        memory: bytes that torch may reserve.
        mode: what is done.
        allocator: `default`, or `expandable` for `expandable_segments:True`.
        split: bytes above which the allocator never cuts a block, `max_split_size_mb`.
        processes: that train together, each on a GPU of its own.
        asserted: a batch to look at as well.
        what_if: whether to look at what would help.
        choose: whether to choose entries to recompute, so that `batch` fits.
        resolution: whether to look for the largest input at `batch`.
        notes: what the question leaves out, to be told with the answer.
    """

    document: dict[str, Any]
    config: str
    gpu: Gpu
    batch: int
    memory: int
    mode: Mode = "train"
    allocator: Allocator = "default"
    split: int | None = None
    processes: int = 1
    asserted: int | None = None
    what_if: bool = False
    choose: bool = False
    resolution: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """An entry of the net: its place, its code, and the bytes of activations that it keeps at the peak."""

    key: str
    code: str
    kept: int


@dataclass(frozen=True, slots=True)
class Change:
    """What another choice would give.

    Attributes:
        options: how it is asked for, as in `--precision bf16`.
        largest: the largest batch that fits with the margin; it was followed itself.
        reserved: bytes at the batch that was asked for.
    """

    options: str
    largest: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was predicted; sizes in bytes.

    Attributes:
        batch: samples, of a micro-batch where it is training.
        precision: that the net computes in.
        tensors: of all tensors, and what libraries take beside them, at the peak.
        allocated, reserved: by torch's allocator, at their peaks.
        parts: what `tensors` is made of, by what it is for.
        layers: which keep most, largest first.
        stage, layer, operation: where the peak stands.
        safe: the largest batch that fits with the margin; 0 where none does.
        too_large: the smallest batch known not to fit so; None where the search came to its end.
        limit: the largest that fits without a margin, where the allocator gives back what it has cached.
        one: reserved at batch 1, where not even that fits safely; else 0.
        asserted_fits: whether the asserted batch fits safely.
        evaluations: batches that were followed.
        notes: what the prediction leaves out.
        grade: how the number was obtained, a key of `MARGINS`.
        workspaces: where those of convolutions come from: `rule`, or cuDNN and its version.
        changes: what would help, where that was asked for.
        recomputed: the entries that were chosen to be recomputed; None where nothing was to be chosen.
        input, too_large_input: the largest input at `batch`, and the next one; empty where that was not asked for, or
            none fits, or none is too large.
    """

    batch: int
    precision: str
    tensors: int
    allocated: int
    reserved: int
    parts: dict[str, int]
    layers: tuple[Layer, ...]
    stage: str
    layer: str
    operation: str
    safe: int
    too_large: int | None
    limit: int
    one: int
    asserted_fits: bool | None
    evaluations: int
    notes: tuple[str, ...]
    grade: str = "C"
    workspaces: str = "rule"
    changes: tuple[Change, ...] = ()
    recomputed: tuple[str, ...] | None = None
    input: str = ""
    too_large_input: str = ""

    @property
    def margin(self) -> float:
        """The part of a prediction that is left free."""
        return MARGINS[self.grade]

    @property
    def slack(self) -> int:
        """What the allocator holds beyond the tensors: rounded up, or cached in pieces that fit nothing."""
        return max(0, self.reserved - self.tensors)


def usable(gpu: Gpu, memory: int | None, processes: int = 1) -> int:
    """The bytes that torch may reserve: what is asked for, else all but CUDA's own, and NCCL's where it takes part.

    Raises:
        ResourceError: the GPU has less.
    """
    most = gpu.total - CONTEXT - (NCCL if processes > 1 else 0)
    if memory is not None and memory > most:
        what = f"{memory / 2**30:.2f} GiB are more than {gpu.name} has for torch: {most / 2**30:.2f} GiB"
        raise ResourceError(what, hint="give a smaller --memory, or another --gpu")
    return memory or most


def require_precision(name: str, gpu: Gpu) -> None:
    """Refuse arithmetic that a GPU does not have.

    Raises:
        UsageError: it has no such arithmetic.
    """
    if name == "tf32" and not gpu.bf16:
        what = f"{gpu.name} has no tf32; it takes an NVIDIA GPU from Ampere on"
        raise UsageError(what, where="train.precision", hint="use fp32")


def forecast(question: Question, time_limit: float = TIME_LIMIT) -> Forecast:
    """Predict, in a process of its own: what is changed in torch there is nobody else's.

    Raises:
        FlexVAEError: the net cannot be followed without computing.
    """
    ended, facts, stderr = run_program(PROGRAM, asdict(question), time_limit)
    raise_problems(facts, stderr)
    if ended != 0 or "error" in facts or "batch" not in facts:
        what = "the prediction took too long" if ended is None else reason(ended, facts, stderr)
        raise FlexVAEError(f"no prediction: {what}", hint="FLEXVAE_DEBUG=1 shows where") from RuntimeError(stderr)
    rows = {
        "layers": tuple(Layer(**layer) for layer in facts["layers"]),
        "changes": tuple(Change(**change) for change in facts["changes"]),
        "notes": tuple(facts["notes"]),
        "recomputed": None if facts["recomputed"] is None else tuple(facts["recomputed"]),
    }
    return Forecast(**{**facts, **rows})
