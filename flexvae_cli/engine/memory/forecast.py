"""What a step needs on a GPU that need not be here: the question, the answer, and the process that finds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from flexvae_cli.engine.memory.child import raise_problems, reason, run_program
from flexvae_cli.engine.memory.devices import CONTEXT, Gpu
from flexvae_cli.errors import FlexVAEError, ResourceError, UsageError

PROGRAM = "flexvae_cli.engine.memory.forecaster"
TIME_LIMIT = 1800.0  # seconds
MARGIN = 0.06  # of what is predicted
GRADE = "C"  # A measured, B asked of cuDNN, C by rule
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
        asserted: a batch to look at as well.
    """

    document: dict[str, Any]
    config: str
    gpu: Gpu
    batch: int
    memory: int
    mode: Mode = "train"
    allocator: Allocator = "default"
    asserted: int | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """An entry of the net: its place, its code, and the bytes of activations that it keeps at the peak."""

    key: str
    code: str
    kept: int


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

    @property
    def slack(self) -> int:
        """What the allocator holds beyond the tensors: rounded up, or cached in pieces that fit nothing."""
        return max(0, self.reserved - self.tensors)


def usable(gpu: Gpu, memory: int | None) -> int:
    """The bytes that torch may reserve: what is asked for, else all but CUDA's own.

    Raises:
        ResourceError: the GPU has less.
    """
    most = gpu.total - CONTEXT
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
    layers = tuple(Layer(**layer) for layer in facts.pop("layers"))
    return Forecast(**{**facts, "layers": layers, "notes": tuple(facts["notes"])})
