"""The checks that `check_layer` runs: each is a function from a case to what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexvae_cli.api.docstring import Example
from flexvae_cli.api.results import Encoded
from flexvae_cli.api.spec import LayerSpec
from flexvae_cli.api.state_checks import global_state, seeding
from flexvae_cli.api.trace import Shape, Step, text

if TYPE_CHECKING:
    from torch import Tensor, nn

Wrong = Iterator[str]


@dataclass(frozen=True)
class Case:
    """One example of a layer, with the parameter values that its code means."""

    spec: LayerSpec
    example: Example
    values: Mapping[str, Any]

    def module(self) -> nn.Module:
        """A freshly built module from tensors to tensors, or to `Encoded` where it is a bottleneck's."""
        module: nn.Module = self.spec.factory(**self.values)
        return _in_its_place(module, self.spec.kind) if self.spec.quantizes else module

    def quantizer(self) -> Any:
        """A freshly built module of a layer that quantizes, as its factory makes it."""
        return self.spec.factory(**self.values)

    def sample(self, batch: int = 2) -> Tensor:
        """Normal noise of the example's input shape, (batch, c, *space)."""
        import torch

        return torch.randn(batch, *self.example.takes, dtype=torch.float32)


def _in_its_place(quantizer: nn.Module, kind: str) -> nn.Module:
    """A quantizer as it stands in a net: a layer that also gets the gradients of its own loss, or a bottleneck."""
    import torch

    class Entry(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantizer = quantizer

        def forward(self, x: Tensor) -> Tensor | Encoded:
            y = self.quantizer(x)
            if kind == "bottleneck":
                return Encoded(y.x, None, y.indices, y.loss, y.stats)
            if y.loss is None or not self.training:
                return y.x
            return y.x + (y.loss - y.loss.detach())  # adds 0, and the gradients of the loss

    return Entry()


def _output(case: Case) -> Wrong:
    import torch

    if case.spec.dims not in (None, len(case.example.takes) - 1):
        yield f"the example has {len(case.example.takes) - 1} axes, the spec says dims={case.spec.dims}"
    for mode in ("training", "evaluation"):
        x = case.sample()
        given = x.clone()
        y = case.module().train(mode == "training")(x)
        if not isinstance(y, torch.Tensor):
            yield f"in {mode} it returns {type(y).__name__}, not a tensor"
            continue
        if y.shape != (len(x), *case.example.gives):
            yield f"in {mode} it gives {text(tuple(y.shape[1:]))}, the example says {text(case.example.gives)}"
        if y.dtype != torch.float32:
            yield f"in {mode} it turns float32 into {y.dtype}"
        if not y.isfinite().all():
            yield f"in {mode} its output is not finite"
        if not torch.equal(x, given):
            yield f"in {mode} it changes its input in place"


def _gradients(case: Case) -> Wrong:
    import torch

    module, x = case.module().train(), case.sample().requires_grad_()
    y = module(x)
    if y.requires_grad:
        (y * torch.randn_like(y)).sum().backward()
    # A layer whose derivative is zero everywhere counts: nothing in front of it could be trained.
    if x.grad is None or not x.grad.any():
        yield "no gradient reaches the input"
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # Zero is allowed: the bias of a key in attention, or a convolution behind a scale that starts at zero.
        if parameter.grad is None:
            yield f"no gradient reaches the parameter {name}"
        elif not parameter.grad.isfinite().all():
            yield f"the gradient of the parameter {name} is not finite"


def _state_dict(case: Case) -> Wrong:
    import torch

    trained, loaded, x = case.module(), case.module(), case.sample()
    with torch.no_grad():
        trained.train()(x)  # running statistics move
        loaded.load_state_dict(trained.state_dict())
        if not torch.equal(trained.eval()(x), loaded.eval()(x)):
            yield "a module that loads the state dict of another gives another output"


def _samples(case: Case) -> Wrong:
    import torch

    module, x = case.module().eval(), case.sample(3)
    with torch.no_grad():
        together, alone = module(x), torch.cat([module(sample[None]) for sample in x])
    if not torch.allclose(together, alone, rtol=1e-4, atol=1e-5):
        yield "in evaluation a sample's output depends on the other samples of the batch"


def _randomness(case: Case) -> Wrong:
    import torch

    module, x = case.module().eval(), case.sample()
    before = torch.get_rng_state()
    module(x)
    if not torch.equal(before, torch.get_rng_state()):
        yield "in evaluation it draws random numbers"


def _bfloat16(case: Case) -> Wrong:
    import torch

    for mode in ("training", "evaluation"):
        y = case.module().bfloat16().train(mode == "training")(case.sample().bfloat16())
        if y.dtype != torch.bfloat16:
            yield f"in {mode}, as bfloat16, it returns {y.dtype}"
        elif not y.isfinite().all():
            yield f"in {mode}, as bfloat16, its output is not finite"


def meta(case: Case) -> Wrong:
    """The layer, or the latent of the bottleneck, on torch's meta device, unless the spec says that it cannot."""
    import torch

    if not case.spec.meta:
        return
    with torch.device("meta"):
        y = case.module()(case.sample())
    y = y.z if isinstance(y, Encoded) else y
    if y.device.type != "meta" or tuple(y.shape[1:]) != case.example.gives:
        yield f"on the meta device it gives {text(tuple(y.shape[1:]))} on {y.device}"


def figures(case: Case) -> Wrong:
    """Shape and parameters by the trace rule, against the example and the module."""
    rule = case.spec.rule(case.values)
    if rule is None:
        return
    step = rule(case.example.takes)
    if step.shape != case.example.gives:
        yield f"the trace rule says {text(step.shape)}, the example {text(case.example.gives)}"
    trainable = sum(p.numel() for p in case.module().parameters() if p.requires_grad)
    if step.parameters != trainable:
        yield f"the trace rule says {step.parameters:,} parameters, the module has {trainable:,}"


def _rule(case: Case) -> Wrong:
    yield from figures(case)
    rule = case.spec.rule(case.values)
    step = rule(case.example.takes) if rule else None
    if step is not None and not step.reach.everywhere and not step.reach.statistics:
        yield from _reach(case, step)


def _reach(case: Case, step: Step) -> Wrong:
    """The inputs that move the output in the middle, found by its gradient, against the rule's intervals."""
    import torch

    module, x = case.module().eval(), case.sample(16).requires_grad_()
    with torch.no_grad():
        for parameter in module.parameters():  # a path whose scale starts at zero reads its input all the same
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    y = module(x)
    middle: Shape = tuple(n // 2 for n in y.shape[2:])
    if not y.requires_grad:  # another check says so
        return
    at_middle = y[(..., *middle)]  # (b, c)
    (gradient,) = torch.autograd.grad((at_middle * torch.randn_like(at_middle)).sum(), x)
    read = gradient.abs().sum((0, 1)).nonzero()  # (positions, axes)
    if not len(read):  # as between the taps of a transposed convolution
        return
    for axis, (first, last) in enumerate(zip(read.amin(0).tolist(), read.amax(0).tolist(), strict=True)):
        origin = step.reach.stride[axis] * middle[axis]
        low, high = origin + step.reach.low[axis], origin + step.reach.high[axis]
        exact = all(n.denominator == 1 for n in (origin, low, high)) and low >= 0 and high < x.shape[2 + axis]
        if first < low or last > high or (exact and (first, last) != (low, high)):
            yield f"the output at {text(middle)} reads {first} to {last} of axis {axis}, the rule says {low} to {high}"


Check = Callable[[Case], Wrong]
CHECKS: dict[str, Check] = {
    "forward": _output,
    "trace rule": _rule,
    "gradients": _gradients,
    "state dict": _state_dict,
    "samples of a batch": _samples,
    "randomness": _randomness,
    "global state": global_state,
    "seeding": seeding,
    "bfloat16": _bfloat16,
    "meta device": meta,
}
