"""What FlexVAE relies on, as one test each, for us and every plugin: `check_layer` and its like for the other kinds.

    @pytest.mark.parametrize("spec", plugin.flexvae_layers(), ids=lambda spec: spec.name)
    def test_layer(spec):
        check_layer(spec)

The examples of the factory's docstring are the cases of a layer and of a bottleneck.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flexvae_cli.api.bottleneck_checks import BOTTLENECK_CHECKS
from flexvae_cli.api.callback_checks import callback_faults
from flexvae_cli.api.checks import CHECKS, Case, Check
from flexvae_cli.api.docstring import Example, parse_docstring
from flexvae_cli.api.loss_checks import loss_faults, shape_for
from flexvae_cli.api.losses import LossSpec
from flexvae_cli.api.quantizer_checks import QUANTIZER_CHECKS
from flexvae_cli.api.reader_checks import reader_faults
from flexvae_cli.api.readers import ReaderSpec
from flexvae_cli.api.spec import LayerSpec, Spec
from flexvae_cli.api.state_checks import switches
from flexvae_cli.api.trace import Shape


def check_layer(spec: LayerSpec) -> None:
    """Hold a layer to its contract, on every example of its docstring.

    - It is described: a summary, help for every parameter, an example; a code and its canonical form mean the same.
    - Shape, parameter count and reach are what the trace rule says.
    - Outputs are finite float32, and bfloat16 after `module.bfloat16()`.
    - Gradients reach the input and every parameter.
    - The state dict holds all that the output depends on.
    - In evaluation the samples of a batch are independent, and nothing is random.
    - The input, torch's global switches and the warning filters stay as they are, and nothing is seeded. A warning
      counts as an error.
    - It runs on the meta device, unless the spec says `meta=False`.

    Of a layer that quantizes this is asked of its quantized output, and besides:

    - It returns `Quantized`; indices are whole numbers (b, q, *space) within `bits`, loss and stats are finite scalars.
    - In evaluation `from_indices(indices)` is its output, bit for bit.
    - An input that is not finite shows in its output or its loss, and leaves nothing behind in its buffers.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    _require(spec, examined(spec))


def check_bottleneck(spec: LayerSpec) -> None:
    """Hold a bottleneck to its contract, on every example of its docstring.

    - It is described, as a layer is.
    - It returns `Encoded`, whose latent is finite and has the shape that the example and the trace rule say; the
      posterior has the latent's shape, indices are whole numbers, its own loss and its stats are scalars.
    - A gradient reaches its input, through the latent or its own loss.
    - In evaluation nothing is random, and the samples of a batch are independent.
    - `sample(shape, generator=...)`, where there is one, gives finite latents of `shape`, equal for equal generators.
    - Global state and the meta device are as with a layer.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    _require(spec, examined(spec))


def check_loss(spec: Spec, **values: Any) -> None:
    """Hold a loss to its contract: described, and on a synthetic `Batch` a finite scalar with a gradient.

    The batch is two samples of 3x32x32 (or larger, where `fits` asks for it) in [-1, 1], with a normal posterior.

    - The gradient is finite and reaches the decoder's output or the latent; a step against it lowers the value; and it
      depends on what the net gave, as it does not where two arguments are swapped.
    - The batch stays as it is.
    - Where a reduction is stated, the value of a batch is the mean of those of its samples.

    Args:
        values: the values of parameters that have no default.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    _require(spec, examined(spec, **values))


def check_callback(spec: Spec, **values: Any) -> None:
    """Hold a callback to its contract: described, and its observers bear a made-up run of six steps.

    They are shown every kind of event of a run, of the run that goes on from a checkpoint, and of one that ends before
    its first step. They raise nothing, change no event, and print nothing on stdout.

    Args:
        values: the values of parameters that have no default.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    _require(spec, examined(spec, **values))


def check_reader(spec: Spec, file: Path | str, like: Shape, /, **values: Any) -> None:
    """Hold a reader to its contract: described, and it reads a file of its kind, and what it writes of that.

    - It is a `Reader`, and can be pickled.
    - It finds the file; header and numbers say the same shape, with the channels and the number of axes of `like`; the
      numbers are finite.
    - What `write` makes of the samples is read as samples of that shape, not far from them.
    - Of the same file cut short, of one that goes on as noise, of noise and of nothing it makes samples, or raises
      `BadFile`, and no other exception.

    Args:
        file: one that the reader reads.
        like: (c, *space) of a training sample.
        values: the values of parameters that have no default.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    faults = partial(_reader, file=Path(file), like=like)
    _require(spec, {"docs": list(_described(spec)), "files": _tried(faults, spec, values)})


def examined(spec: Spec, more: Mapping[str, Check] = MappingProxyType({}), /, **values: Any) -> dict[str, list[str]]:
    """What each check of a contract finds wrong: check -> what it says, nothing where it passes.

    Args:
        spec: of a layer, a bottleneck, a loss, a callback, or a reader, which meets damaged files alone.
        more: checks beside those of the contract, for layers and bottlenecks.
        values: the values of parameters that have no default, of what is no layer and no bottleneck.
    """
    if not isinstance(spec, LayerSpec):
        tried, faults = TRIED[spec.kind]
        return {"docs": list(_described(spec)), tried: _tried(faults, spec, values)}
    checks = {**_checks_of(spec), **more}
    found: dict[str, list[str]] = {"docs": list(_description(spec)), "examples": [], **{name: [] for name in checks}}
    for example in spec.examples:
        for name, what in _example(spec, example, checks):
            found[name].append(f"{example.code}: {what}")
    return found


def _checks_of(spec: LayerSpec) -> Mapping[str, Check]:
    if spec.kind == "bottleneck":
        return BOTTLENECK_CHECKS
    return {**CHECKS, **QUANTIZER_CHECKS} if spec.quantizes else CHECKS


def _require(spec: Spec, found: Mapping[str, list[str]]) -> None:
    wrong = [what for each in found.values() for what in each]
    if wrong:
        raise AssertionError("\n  ".join([f"the {spec.kind} {spec.name} breaks its contract:", *wrong]))


def _tried(faults: Callable[..., Iterator[str]], spec: Spec, values: dict[str, Any]) -> list[str]:
    try:
        with _isolated():
            return list(faults(spec, values))
    except Exception as error:
        return [f"does not run: {type(error).__name__}: {error}"]


def _loss(spec: Spec, values: dict[str, Any]) -> Iterator[str]:
    stated = isinstance(spec, LossSpec) and spec.reduction is not None
    return loss_faults(spec.factory(**values), shape_for(spec, values), stated=stated)


def _callback(spec: Spec, values: dict[str, Any]) -> Iterator[str]:
    return callback_faults(lambda: spec.factory(**values))


def _reader(spec: Spec, values: dict[str, Any], file: Path | None = None, like: Shape | None = None) -> Iterator[str]:
    axes = spec.axes if isinstance(spec, ReaderSpec) else ()
    return reader_faults(lambda: spec.factory(**values), axes, file, like)


TRIED: Mapping[str, tuple[str, Callable[..., Iterator[str]]]] = MappingProxyType(
    {"loss": ("batch", _loss), "callback": ("events", _callback), "reader": ("files", _reader)}
)
"""What is checked of a kind beside its description, and what finds it."""


def _described(spec: Spec) -> Iterator[str]:
    if not spec.summary:
        yield "the docstring has no summary line"
    for param in spec.params:
        if not param.help:
            yield f"the parameter {param.name} has no help under Args:"


def _description(spec: LayerSpec) -> Iterator[str]:
    yield from _described(spec)
    if not spec.examples:
        yield "the docstring has no example; write one under Examples: such as C2d_3_8_3: 3x8x8 -> 8x6x6"
    for line in parse_docstring(inspect.getdoc(spec.factory) or "").unread:
        yield f"the example line '{line}' does not read as CODE: 3x8x8 -> 8x6x6"


def _example(spec: LayerSpec, example: Example, checks: Mapping[str, Check]) -> Iterator[tuple[str, str]]:
    """The checks that fail on one example; where it does not run at all, that is all there is to say of it."""
    try:
        case = Case(spec, example, _values(spec, example.code))
        with _isolated():
            _require_module(case)
            case.module()(case.sample())
    except Exception as error:
        yield "examples", f"does not run: {type(error).__name__}: {error}"
        return
    for name, check in checks.items():
        try:
            with _isolated():
                for what in check(case):
                    yield name, what
        except Exception as error:
            yield name, f"{name}: {type(error).__name__}: {error}"


def _require_module(case: Case) -> None:
    from torch import nn

    made = case.spec.factory(**case.values)
    if not isinstance(made, nn.Module):
        raise TypeError(f"the factory makes a {type(made).__name__}, not a torch module")


def _values(spec: LayerSpec, written: str) -> Mapping[str, Any]:
    """The parameter values that a code means, which its canonical form means too."""
    from flexvae_cli import codes

    def read(code_text: str) -> Mapping[str, Any]:
        problems: list[Any] = []
        code = codes.parse(code_text, "", problems)
        bound = codes.bind(code, spec, "", problems) if code else None
        if code is None or bound is None:
            raise ValueError("; ".join(problem.what for problem in problems))
        if code.name != spec.name or code.count != 1:
            raise ValueError(f"is not the code of one {spec.name}")
        return bound.values

    values = read(written)
    canonical = codes.canonical(spec, values)
    if read(canonical) != values:
        raise ValueError(f"the canonical form {canonical} means something else")
    return values


@contextmanager
def _isolated() -> Iterator[None]:
    """Seeded randomness, warnings as errors; whatever happens inside, the caller's process stays as it was."""
    import torch

    before = {name: read() for name, (read, _) in switches().items()}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.manual_seed(0)
            yield
    finally:
        for name, (read, write) in switches().items():
            if read() != before[name]:
                write(before[name])
