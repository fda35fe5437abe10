"""The checks that `check_layer` runs on a layer that quantizes, beside those on every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexvae_cli.api.checks import Case, Check, Wrong
from flexvae_cli.api.results import Quantized
from flexvae_cli.api.trace import text

if TYPE_CHECKING:
    from torch import Tensor


def _tuple(case: Case) -> Wrong:
    for mode in ("training", "evaluation"):
        quantized = case.quantizer().train(mode == "training")(case.sample())
        if not isinstance(quantized, Quantized):
            yield f"in {mode} it returns {type(quantized).__name__}, not Quantized"
            continue
        yield from (f"in {mode} {what}" for what in _parts(case, quantized))


def _parts(case: Case, quantized: Quantized) -> Wrong:
    indices, takes = quantized.indices, case.example.takes
    if indices.is_floating_point() or indices.is_complex():
        yield f"its indices are {indices.dtype}, not whole numbers"
    elif indices.dim() != len(takes) + 1 or indices.shape[0] != 2 or tuple(indices.shape[2:]) != takes[1:]:
        yield f"its indices are {text(tuple(indices.shape))}, not (batch, codes of a position, {text(takes[1:])})"
    for name, part in {"own loss": quantized.loss, **quantized.stats}.items():
        if part is not None and (part.dim() or not part.isfinite()):
            yield f"its {name} is no finite scalar"
    yield from (f"its {name} has a gradient" for name, part in quantized.stats.items() if part.requires_grad)


def _indices(case: Case) -> Wrong:
    import torch

    module, x = case.quantizer(), case.sample()
    module.train()(x)
    with torch.no_grad():
        quantized = module.eval()(x)
        again = module.from_indices(quantized.indices)
    if not torch.equal(again, quantized.x):
        yield "in evaluation from_indices(indices) is not its output, bit for bit"
    bits = getattr(module, "bits", None)
    if bits is not None and (quantized.indices.min() < 0 or quantized.indices.max() > 2**bits - 1 + 1e-6):
        yield f"its indices do not fit in the {bits:g} bits that it says they cost"


def _broken_input(case: Case) -> Wrong:
    """A step whose numbers are not finite is skipped; what the quantizer remembers has to be as sound as before."""
    module, x = case.quantizer().train(), case.sample()
    module(x)
    x[0] = float("nan")
    broken = module(x)
    if _finite(broken.x) and (broken.loss is None or _finite(broken.loss)):
        yield "it hides inputs that are not finite: the step would not be skipped"
    module(case.sample())
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not _finite(tensor):
            yield f"an input that is not finite leaves its traces in {name}"


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


QUANTIZER_CHECKS: dict[str, Check] = {
    "quantized": _tuple,
    "indices": _indices,
    "input that is not finite": _broken_input,
}
