"""The optimizer, and its state as named tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexvae_cli.config.settings import OptimizerTable
from flexvae_cli.errors import ModelError


def make_optimizer(module: nn.Module, settings: OptimizerTable) -> torch.optim.Optimizer:
    """AdamW over all parameters, fused where torch has a fused form for the device."""
    parameters = list(module.parameters())
    device = parameters[0].device.type if parameters else "cpu"
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=device in ("cpu", "cuda", "mps"),
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `parameter name.state name` -> tensor."""
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor], path: Path
) -> None:
    """The way back from `optimizer_tensors`.

    Raises:
        ModelError: the tensors belong to other parameters.
    """
    states: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        states.setdefault(name, {})[part] = value
    names = [name for name, _ in module.named_parameters()]
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    wrong = [n for n, s in states.items() if any(v.dim() and v.shape != shapes.get(n) for v in s.values())]
    if wrong or not states.keys() <= set(names):
        raise ModelError("the optimizer's state does not fit the net", where=str(path))
    content = optimizer.state_dict()
    content["state"] = {index: states[name] for index, name in enumerate(names) if name in states}
    optimizer.load_state_dict(content)
