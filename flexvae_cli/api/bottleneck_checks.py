"""The checks that `check_bottleneck` runs."""

from __future__ import annotations

from flexvae_cli.api.checks import Case, Check, Wrong, figures, meta
from flexvae_cli.api.results import Encoded, Gaussian
from flexvae_cli.api.state_checks import global_state, seeding
from flexvae_cli.api.trace import text


def _result(case: Case) -> Wrong:
    for mode in ("training", "evaluation"):
        encoded = case.module().train(mode == "training")(case.sample())
        if not isinstance(encoded, Encoded):
            yield f"in {mode} it returns {type(encoded).__name__}, not Encoded"
            continue
        yield from (f"in {mode} {what}" for what in _encoded(case, encoded))


def _encoded(case: Case, encoded: Encoded) -> Wrong:
    wanted = (2, *case.example.gives)
    if encoded.z.shape != wanted:
        yield f"its latent is {text(tuple(encoded.z.shape[1:]))}, the example says {text(case.example.gives)}"
    for name, part in {"latent": encoded.z, "own loss": encoded.loss}.items():
        if part is not None and not part.isfinite().all():
            yield f"its {name} is not finite"
    for name, part in zip(Gaussian._fields, encoded.posterior or (), strict=False):
        if part.shape != encoded.z.shape:
            yield f"its posterior's {name} is {text(tuple(part.shape[1:]))}, unlike the latent"
    if encoded.indices is not None and (encoded.indices.is_floating_point() or encoded.indices.is_complex()):
        yield f"its indices are {encoded.indices.dtype}, not whole numbers"
    for name, part in {"own loss": encoded.loss, **encoded.stats}.items():
        if part is not None and part.dim():
            yield f"its {name} has the shape {text(tuple(part.shape))}, and is no scalar"


def _gradient(case: Case) -> Wrong:
    import torch

    x = case.sample().requires_grad_()
    encoded = case.module().train()(x)
    total = (encoded.z * torch.randn_like(encoded.z)).sum() + (0 if encoded.loss is None else encoded.loss)
    if total.requires_grad:
        total.backward()
    if x.grad is None or not x.grad.any():
        yield "no gradient reaches the input"
    elif not x.grad.isfinite().all():
        yield "the gradient of the input is not finite"


def _evaluation(case: Case) -> Wrong:
    import torch

    module, x = case.module().eval(), case.sample(3)
    before = torch.get_rng_state()
    with torch.no_grad():
        together = module(x).z
        if not torch.equal(before, torch.get_rng_state()):
            yield "in evaluation it draws random numbers"
        alone = torch.cat([module(sample[None]).z for sample in x])
    if not torch.allclose(together, alone, rtol=1e-4, atol=1e-5):
        yield "in evaluation a sample's latent depends on the other samples of the batch"


def _sample(case: Case) -> Wrong:
    import torch

    sample = getattr(case.module().eval(), "sample", None)
    if sample is None:
        return
    shape = (3, *case.example.gives)
    first, second = (sample(shape, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    if first.shape != shape:
        yield f"sample gives {text(tuple(first.shape))}, asked for {text(shape)}"
    if not first.isfinite().all():
        yield "sample gives latents that are not finite"
    if not torch.equal(first, second):
        yield "sample gives other latents for an equal generator"


BOTTLENECK_CHECKS: dict[str, Check] = {
    "result": _result,
    "trace rule": figures,
    "gradient": _gradient,
    "evaluation": _evaluation,
    "sample": _sample,
    "global state": global_state,
    "seeding": seeding,
    "meta device": meta,
}
