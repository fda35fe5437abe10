"""`check_layer`, `check_bottleneck`, `check_loss`: what FlexVAE relies on, as one test each, for us and every plugin.

    @pytest.mark.parametrize("spec", plugin.flexvae_layers(), ids=lambda spec: spec.name)
    def test_layer(spec):
        check_layer(spec)

The examples of the factory's docstring are the cases of a layer and of a bottleneck.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flexvae_cli.api.bottleneck_checks import BOTTLENECK_CHECKS
from flexvae_cli.api.checks import CHECKS, Case, Check, switches
from flexvae_cli.api.docstring import Example, parse_docstring
from flexvae_cli.api.loss_checks import loss_faults, shape_for
from flexvae_cli.api.losses import LossSpec
from flexvae_cli.api.quantizer_checks import QUANTIZER_CHECKS
from flexvae_cli.api.spec import LayerSpec, Spec


def check_layer(spec: LayerSpec) -> None:
    """Hold a layer to its contract, on every example of its docstring.

    - It is described: a summary, help for every parameter, an example; a code and its canonical form mean the same.
    - Shape, parameter count and reach are what the trace rule says.
    - Outputs are finite float32, and bfloat16 after `module.bfloat16()`.
    - Gradients reach the input and every parameter.
    - The state dict holds all that the output depends on.
    - In evaluation the samples of a batch are independent, and nothing is random.
    - The input, torch's global switches and the warning filters stay as they are. A warning counts as an error.
    - It runs on the meta device, unless the spec says `meta=False`.

    Of a layer that quantizes this is asked of its quantized output, and besides:

    - It returns `Quantized`; indices are whole numbers (b, q, *space) within `bits`, loss and stats are finite scalars.
    - In evaluation `from_indices(indices)` is its output, bit for bit.
    - An input that is not finite shows in its output or its loss, and leaves nothing behind in its buffers.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    wrong = list(_description(spec))
    checks = {**CHECKS, **QUANTIZER_CHECKS} if spec.quantizes else CHECKS
    for example in spec.examples:
        wrong += [f"{example.code}: {what}" for what in _example(spec, example, checks)]
    if wrong:
        raise AssertionError("\n  ".join([f"the layer {spec.name} breaks its contract:", *wrong]))


def check_bottleneck(spec: LayerSpec) -> None:
    """Hold a bottleneck to its contract, on every example of its docstring.

    - It is described, as a layer is.
    - It returns `Encoded`, whose latent is finite and has the shape that the example and the trace rule say; the
      posterior has the latent's shape, indices are whole numbers, its own loss and its stats are scalars.
    - A gradient reaches its input, through the latent or its own loss.
    - In evaluation nothing is random, and the samples of a batch are independent.
    - `sample(shape, generator=...)`, where there is one, gives finite latents of `shape`, equal for equal generators.

    Raises:
        AssertionError: the message lists everything that is wrong.
    """
    wrong = list(_description(spec))
    for example in spec.examples:
        wrong += [f"{example.code}: {what}" for what in _example(spec, example, BOTTLENECK_CHECKS)]
    if wrong:
        raise AssertionError("\n  ".join([f"the bottleneck {spec.name} breaks its contract:", *wrong]))


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
    wrong = list(_described(spec))
    try:
        with _isolated():
            stated = isinstance(spec, LossSpec) and spec.reduction is not None
            wrong += loss_faults(spec.factory(**values), shape_for(spec, values), stated=stated)
    except Exception as error:
        wrong.append(f"does not run: {type(error).__name__}: {error}")
    if wrong:
        raise AssertionError("\n  ".join([f"the loss {spec.name} breaks its contract:", *wrong]))


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


def _example(spec: LayerSpec, example: Example, checks: Mapping[str, Check] = CHECKS) -> list[str]:
    """What is wrong with one example; where it does not run at all, that is all there is to say of it."""
    try:
        case = Case(spec, example, _values(spec, example.code))
        with _isolated():
            case.module()(case.sample())
    except Exception as error:
        return [f"does not run: {type(error).__name__}: {error}"]
    wrong: list[str] = []
    for name, check in checks.items():
        try:
            with _isolated():
                wrong.extend(check(case))
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    return wrong


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
