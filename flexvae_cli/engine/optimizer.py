"""The optimizers: parameters in groups, a step that numbers which are not finite cannot take, and the state."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from flexvae_cli.config.settings import OptimizerTable
from flexvae_cli.errors import Problem, UsageError

FUSED = ("adamw", "adam", "sgd")  # these take `found_inf`, and so need no look at the gradient from the host


class Optimization:
    """The optimizer of one module.

    Args:
        module: its parameters are optimized; those that are frozen have no gradient and are passed over.
        table: `[optimizer]` or `[adversarial.optimizer]`.
        where: the name of that table, for messages.

    Raises:
        UsageError: a pattern of a group matches no parameter.
    """

    def __init__(self, module: nn.Module, table: OptimizerTable, where: str = "optimizer") -> None:
        self.named = dict(module.named_parameters())
        self.table = table
        self.factors: list[float] = []  # on the learning rate, by group
        self.optimizer = self._make(_grouped(self.named, table, where))

    def _make(self, groups: dict[tuple[float, float], list[nn.Parameter]]) -> torch.optim.Optimizer:
        table, optim = self.table, torch.optim
        self.factors = [factor for factor, _ in groups]
        fused = all(p.device.type in ("cpu", "cuda", "mps", "meta") for p in self.named.values())
        params = [
            {"params": parameters, "weight_decay": decay, "lr": table.lr * factor}
            for (factor, decay), parameters in groups.items()
        ]
        lr, betas, eps, momentum = table.lr, table.betas, table.eps, table.momentum
        match table.name:
            case "adamw":
                return optim.AdamW(params, lr=lr, betas=betas, eps=eps, fused=fused)
            case "adam":
                return optim.Adam(params, lr=lr, betas=betas, eps=eps, fused=fused)
            case "sgd":
                return optim.SGD(params, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused)
            case "nadam":
                return optim.NAdam(params, lr=lr, betas=betas, eps=eps)
            case "radam":
                return optim.RAdam(params, lr=lr, betas=betas, eps=eps)
            case "rmsprop":
                return optim.RMSprop(params, lr=lr, alpha=betas[1], eps=eps, momentum=momentum)
            case "adafactor":
                return optim.Adafactor(params, lr=lr)

    @property
    def rate(self) -> float:
        """The learning rate of the last step, before the groups' factors."""
        return self._rate

    _rate = 0.0

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.named.values() if p.grad is not None]

    def clip(self) -> Tensor:
        """Bring the norm of the whole gradient down to `clip_norm`; returns the norm before that, on the device."""
        gradients = self.gradients()
        norm = get_total_norm(gradients)
        if self.table.clip_norm:
            clip_grads_with_norm_([p for p in self.named.values() if p.grad is not None], self.table.clip_norm, norm)
        return norm

    def step(self, rate_factor: float, bad: Tensor) -> None:
        """Update the parameters.

        Args:
            rate_factor: factor on the learning rate, see `schedule`.
            bad: a scalar on the device, not 0 where the gradient is not finite: then nothing changes at all.
        """
        self._rate = self.table.lr * rate_factor
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = self._rate * factor
        self._make_momentum()
        if self.optimizer.defaults.get("fused"):
            self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # the kernels read it on the device
            self.optimizer.step()
        elif bad.is_meta or not bool(bad):
            self.optimizer.step()

    def _make_momentum(self) -> None:
        """Start SGD's momentum at 0, with which the first step is the same.

        Left to itself torch's fused form takes memory as it finds it where the first step is skipped, and cannot take
        parameters that learn from different steps on.
        """
        if self.table.name == "sgd" and self.table.momentum:
            for parameter in self.named.values():
                if parameter.grad is not None and self.optimizer.state[parameter].get("momentum_buffer") is None:
                    self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as `parameter name.state name`."""
        return {
            f"{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(float(value))
            for name, parameter in self.named.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        states: dict[str, dict[str, Any]] = {}
        for key, value in tensors.items():
            name, _, part = key.rpartition(".")
            states.setdefault(name, {})[part] = value
        for name, state in states.items():
            parameter = self.named.get(name)
            if parameter is None:
                raise ValueError(f"there is no parameter {name}")
            if any(value.numel() > parameter.numel() for value in state.values()):
                raise ValueError(f"{name} has another shape")
            states[name] = {part: _laid_out_as(parameter, value) for part, value in state.items()}
        content = self.optimizer.state_dict()
        names = {id(parameter): name for name, parameter in self.named.items()}
        ordered = [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]
        content["state"] = {index: states[name] for index, name in enumerate(ordered) if name in states}
        self.optimizer.load_state_dict(content)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A state in the memory layout of its parameter: fused forms go through both element by element, as they lie."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def matching(names: Iterable[str], patterns: Iterable[str], where: str) -> set[str]:
    """The names that any of the patterns matches.

    Raises:
        UsageError: for every pattern that matches none.
    """
    names, found, problems = list(names), set[str](), list[Problem]()
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            hint = f"parameters are called as in {names[0]}" if names else ""
            problems.append(Problem(f"'{pattern}' matches no parameter", where, hint=hint))
        found.update(hits)
    if problems:
        raise UsageError(*problems)
    return found


def _grouped(
    named: dict[str, nn.Parameter], table: OptimizerTable, where: str
) -> dict[tuple[float, float], list[nn.Parameter]]:
    """(factor on the learning rate, weight decay) -> parameters."""
    of_group = [matching(named, group.match, f"{where}.group[{i}].match") for i, group in enumerate(table.group)]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        factor, decay = 1.0, table.weight_decay
        if parameter.dim() <= 1 and not table.decay_norms_and_biases:
            decay = 0.0
        for group, members in zip(table.group, of_group, strict=True):
            if name in members:
                factor, decay = group.lr_factor, decay if group.weight_decay is None else group.weight_decay
                break
        groups.setdefault((factor, decay), []).append(parameter)
    return groups
