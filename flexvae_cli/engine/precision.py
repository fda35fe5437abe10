"""The arithmetic of the nets: autocast, the scale of fp16 losses, and what a device can do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from flexvae_cli.errors import UsageError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 65536.0
STEPS_TO_GROW = 2000  # finite steps after which the scale doubles (arXiv:1710.03740)


class Precision:
    """How the nets compute; weights, optimizer, losses and statistics stay in fp32.

    Args:
        name: `auto`, `fp32`, `tf32`, `bf16` or `fp16`.
        device: where.
        where: the setting that the name comes from, for the message.

    Raises:
        UsageError: the device cannot compute in it.
    """

    def __init__(self, name: str, device: torch.device, where: str = "train.precision") -> None:
        if name == "auto":
            name = (
                "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
            )
        self.name = name
        self.device = device
        self.dtype = HALF.get(name)
        if name == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
            raise UsageError(
                f"'{device}' has no tf32; it takes an NVIDIA GPU from Ampere on", where=where, hint="use fp32"
            )
        if self.dtype is not None:
            _require(self.dtype, device, where)
        if device.type == "cuda":
            exactness = "tf32" if name == "tf32" else "ieee"  # cuDNN's own default is tf32
            torch.backends.cuda.matmul.fp32_precision = exactness
            torch.backends.cudnn.conv.fp32_precision = exactness  # type: ignore[attr-defined]
        self.scale = Scale(device, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """Where the nets' forward passes run."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


class Scale:
    """The factor that keeps fp16 gradients from vanishing: halved when they overflow, doubled when they long did not.

    Everything stays on the device. Where it is not enabled, the factor is 1 and nothing changes it.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self.value = torch.tensor(FIRST_SCALE if enabled else 1.0, device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Bring gradients of the scaled loss back, in place."""
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, 1 / self.value)

    def expected(self, bad: Tensor) -> Tensor:
        """Whether a gradient that is not finite may be an overflow of the scale alone, and no fault of the run."""
        return bad & (self.value > 1.0) if self.enabled else torch.zeros_like(bad)

    def update(self, bad: Tensor) -> None:
        """After a step whose gradient was finite or, where `bad` is true, was not."""
        if not self.enabled:
            return
        steps = torch.where(bad, 0, self.finite_steps + 1)
        grown = torch.where(steps >= STEPS_TO_GROW, self.value * 2, self.value)
        self.value = torch.where(bad, self.value / 2, grown).clamp(2.0**-14, 2.0**24)
        self.finite_steps = torch.where(steps >= STEPS_TO_GROW, 0, steps)

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value, "finite_steps": self.finite_steps} if self.enabled else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != self.tensors().keys():
            raise ValueError("the run used another precision")
        if self.enabled:
            device = self.value.device
            self.value, self.finite_steps = tensors["value"].to(device), tensors["finite_steps"].to(device)


def _require(dtype: torch.dtype, device: torch.device, where: str) -> None:
    """Try a convolution and a linear layer, forward and backward: what the device says of itself is no proof."""
    name = str(dtype).removeprefix("torch.")
    generator = torch.random.get_rng_state()
    try:
        net = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(4, 1)).to(device)
        with torch.autocast(device.type, dtype):
            y = net(torch.ones(1, 1, 4, 4, device=device))
        y.float().sum().backward()
    except (RuntimeError, NotImplementedError) as error:
        raise UsageError(f"'{device}' cannot train in {name}: {str(error).splitlines()[0]}", where=where) from None
    finally:
        torch.random.set_rng_state(generator)
    if dtype == torch.float16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        raise UsageError("this CPU has no fp16 arithmetic", where=where, hint="use bf16 or fp32")


def set_determinism(wanted: bool, device: torch.device) -> None:
    """Only deterministic algorithms where `wanted`; else the fastest that cuDNN finds for the shapes at hand."""
    torch.use_deterministic_algorithms(wanted)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = wanted
        torch.backends.cudnn.benchmark = not wanted
