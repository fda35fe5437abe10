"""Lets code on meta tensors take the ways that it takes on CUDA: autocast, fused dropout and attention, optimizers.

torch decides these by the device of the tensors, and CUDA tensors take a GPU. All of it is undone on leaving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ContextDecorator, ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from flexvae_cli.engine.memory.kernels import Mish, attend, attend_on_cpu, dropout, is_half, is_mish, is_of


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


HALVED = _names(  # autocast computes these in half precision; the names are those of autocast_mode.h
    """conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution prelu addmm addmv
    addr matmul __matmul__ __rmatmul__ einsum mm mv vecdot linear addbmm baddbmm bmm chain_matmul multi_dot
    scaled_dot_product_attention"""
)
FULL = _names(  # and these in float32
    """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ __rpow__ softplus
    layer_norm group_norm cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss hinge_embedding_loss kl_div
    l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp interpolate
    norm upsample rms_norm"""
)
FULL_RESULT = _names(  # these read half precision and give float32
    "prod softmax log_softmax cumprod cumsum vector_norm matrix_norm sum linalg_vector_norm linalg_matrix_norm"
)
WIDEST = _names(  # and these take the widest type that comes in
    """addcdiv addcmul atan2 bilinear cross dot vdot grid_sample index_put tensordot scatter_add cat concat stack
    """
)
TOLD_APART = HALVED | FULL | FULL_RESULT | WIDEST | {"scaled_dot_product_attention", "dropout", "mish"}


class CudaSemantics(TorchFunctionMode):
    """Casts as CUDA's autocast does, and takes the kernels that CUDA would."""

    def __init__(self, flash: bool = True) -> None:
        super().__init__()
        self.flash = flash
        self.copies: dict[Tensor, Tensor] = {}  # of weights, in half precision, until the outermost autocast is left

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in TOLD_APART:
            return func(*args, **kwargs)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = self._cast(name, args, kwargs)
        if name == "scaled_dot_product_attention":
            return attend(*args, flash=self.flash, **kwargs)
        if name == "dropout":
            return dropout(func, *args, **kwargs)
        if is_mish(func, args, kwargs):
            return Mish.apply(args[0])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)

    def _cast(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        half = torch.get_autocast_dtype("cuda")
        if name in HALVED:
            return tree_map(lambda x: self._halved(x, half), (args, kwargs))  # type: ignore[no-any-return]
        if name in FULL:
            return tree_map(_full, (args, kwargs))  # type: ignore[no-any-return]
        if name in FULL_RESULT and "dtype" not in kwargs and args and is_half(args[0]):
            return args, {**kwargs, "dtype": torch.float32}
        if name in WIDEST and any(is_of(x, torch.float32) for x in torch.utils._pytree.tree_leaves(args)):
            return tree_map(_full, (args, kwargs))  # type: ignore[no-any-return]
        return args, kwargs

    def _halved(self, x: Any, half: torch.dtype) -> Any:
        if not is_of(x, torch.float32):
            return x.to(half) if is_half(x) else x
        if not (x.requires_grad and x.is_leaf and not x._is_view()):
            return x.to(half)
        if x not in self.copies:
            self.copies[x] = x.to(half)
        return self.copies[x]


def _full(x: Any) -> Any:
    return x.float() if is_half(x) else x


class CpuSemantics(TorchFunctionMode):
    """Takes the kernels that a CPU would: attention that never holds all pairs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "scaled_dot_product_attention" and args[0].is_meta:
            return attend_on_cpu(func, *args, **kwargs)
        if is_mish(func, args, kwargs):
            return Mish.apply(args[0])  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


class Autocast(ContextDecorator):
    """`torch.autocast` for tensors on meta, which count as CUDA's; torch's own refuses both where there is no GPU."""

    def __init__(
        self,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,  # noqa: ARG002
    ) -> None:
        self.counts = device_type in ("meta", "cuda")
        self.enabled, self.dtype = enabled, dtype
        self.before: list[tuple[bool, torch.dtype]] = []

    def __enter__(self) -> Autocast:
        self.before.append((torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")))
        if self.counts:
            torch.set_autocast_enabled("cuda", self.enabled)
            torch.set_autocast_dtype("cuda", self.dtype or self.before[-1][1])
        torch.autocast_increment_nesting()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        enabled, dtype = self.before.pop()
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)


@contextmanager
def on_meta(cuda: CudaSemantics | None) -> Iterator[None]:
    """While held, a training step runs on meta tensors.

    Args:
        cuda: how to take CUDA's ways; None takes the CPU's, in fp32.
    """
    fused = ["cuda", "cpu", "meta"]
    changes: list[tuple[str, Any]] = [
        ("torch.autocast", Autocast),
        ("torch.amp.autocast", Autocast),
        ("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: fused),
        ("torch.utils.checkpoint._infer_device_type", lambda *_: "cuda"),
    ]
    mode = CpuSemantics() if cuda is None else cuda
    changes.append(("torch.autograd._engine_run_backward", _with(mode, torch.autograd.graph._engine_run_backward)))
    if cuda is not None:
        changes += [
            ("flexvae_cli.engine.rules.META", "cuda"),
            ("torch.optim.optimizer._get_foreach_kernels_supported_devices", lambda: ["cuda", "meta"]),
            ("torch.clear_autocast_cache", _clearing(cuda, torch.clear_autocast_cache)),
        ]
    with ExitStack() as stack:
        for name, value in changes:
            stack.enter_context(patch(name, value))
        stack.enter_context(mode)
        yield


def _clearing(cuda: CudaSemantics, clear: Callable[[], None]) -> Callable[[], None]:
    def cleared() -> None:
        cuda.copies.clear()
        clear()

    return cleared


def _with(mode: TorchFunctionMode, run: Callable[..., Any]) -> Callable[..., Any]:
    """torch takes a mode away while it handles a call, and `backward` is one: recomputed layers would not see it."""

    def running(*args: Any, **kwargs: Any) -> Any:
        if mode in torch.overrides._get_current_function_mode_stack():
            return run(*args, **kwargs)
        with mode:
            return run(*args, **kwargs)

    return running
