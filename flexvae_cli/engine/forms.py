"""The form in which a net computes: layout, fused layers, what norms compute in, recomputed or compiled parts.

None of it changes what the net means or how its `state_dict` looks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flexvae_cli.config.settings import TrainTable
from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing import fuse
from flexvae_cli.engine.precision import Precision
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import Problem, UsageError

NORMS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def take_form(vae: VAE, train: TrainTable, precision: Precision) -> torch.memory_format:
    """Put a net into the form that `[train]` asks for; returns the memory layout that its samples should have.

    Raises:
        UsageError: an entry of `activation_checkpointing` is not in the net.
    """
    _norms(vae, train.norm_dtype, precision)
    apart = _recomputed(vae, train.activation_checkpointing)
    fusing = "off" if train.compile else train.fuse  # a compiler wants the layers as they are written
    fuse(vae, fusing, wide_norms=train.norm_dtype == "fp32", apart=apart)
    for entry in apart:
        entry.forward = _recomputing(entry)  # of what is fused inside of it
    layout = _layout(vae, train.layout, precision, fused=fusing != "off")
    if train.compile:
        for part in (vae.encoder, vae.decoder):
            part.compile(mode=train.compile if isinstance(train.compile, str) else None)
    return layout


def _layout(vae: VAE, wanted: str, precision: Precision, *, fused: bool) -> torch.memory_format:
    best = rules.layout(precision.device, precision.dtype, training=True, fused=fused)
    if wanted == "contiguous" or (wanted == "auto" and best is torch.contiguous_format):
        return torch.contiguous_format
    if not rules.is_of_images(vae):
        if wanted == "auto":
            return torch.contiguous_format
        raise UsageError("channels-last is a layout of images; this net has other axes", where="train.layout")
    vae.to(memory_format=torch.channels_last)
    return torch.channels_last


def _norms(vae: VAE, wanted: str, precision: Precision) -> None:
    """Let normalization layers compute in fp32, or in what comes in: under autocast it depends on the device else."""
    if precision.dtype is None:
        return
    for module in vae.modules():
        if isinstance(module, NORMS):
            form = _norm_in_fp32 if wanted == "fp32" else _norm_in_input_dtype
            module.forward = partial(form, module, module.forward)  # type: ignore[method-assign]


def _norm_in_fp32(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # noqa: ARG001
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def _norm_in_input_dtype(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The statistics are fp32 inside torch's kernels; input, output and what is kept for backward are in x's type."""
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(module, nn.GroupNorm):
            weight, bias = _as(module.weight, x), _as(module.bias, x)
            return nn.functional.group_norm(x, module.num_groups, weight, bias, module.eps)
        if isinstance(module, nn.LayerNorm):
            weight, bias = _as(module.weight, x), _as(module.bias, x)
            return nn.functional.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
        if isinstance(module, nn.RMSNorm):
            return nn.functional.rms_norm(x, module.normalized_shape, _as(module.weight, x), module.eps)
        return forward(x)  # the others take half inputs beside fp32 weights as they are


def _as(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def _recomputed(vae: VAE, wanted: str | tuple[str, ...]) -> list[nn.Module]:
    """The entries that are to recompute what is inside of them."""
    if wanted == "off":
        return []
    entries = _entries(vae)
    chosen = blocks_of(vae) if wanted == "blocks" else wanted
    unknown = [key for key in chosen if key not in entries]
    if unknown:
        hint = f"entries are {next(iter(entries))} to {list(entries)[-1]}"
        where = "train.activation_checkpointing"
        raise UsageError(*(Problem(f"the net has no entry '{key}'", where, hint=hint) for key in unknown))
    return [entries[key] for key in chosen]


def _entries(vae: VAE) -> dict[str, nn.Module]:
    return {f"{side}.{key}": m for side in ("encoder", "decoder") for key, m in getattr(vae, side).named_children()}


def blocks_of(vae: VAE) -> list[str]:
    """The entries that have parts: what `activation_checkpointing = "blocks"` stands for."""
    return [key for key, module in _entries(vae).items() if next(module.children(), None) is not None]


def _recomputing(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    @wraps(forward)
    def recomputed(x: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return forward(x)
        return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _Unchanged(module)))

    return recomputed


class _Unchanged:
    """The second forward pass must not count for running statistics: they were updated in the first.

    It is entered once for every backward pass through the module, of which adversarial training has several.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before: list[Tensor] = []

    def __enter__(self) -> None:
        self.before = [buffer.clone() for buffer in self.module.buffers()]

    def __exit__(self, *_: object) -> None:
        for buffer, value in zip(self.module.buffers(), self.before, strict=True):
            buffer.copy_(value)
