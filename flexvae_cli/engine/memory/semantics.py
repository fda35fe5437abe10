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
FLASH_HEAD = 256  # the largest head that flash attention takes


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
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = self._cast(name, args, kwargs)
        if name == "scaled_dot_product_attention":
            return attend(*args, flash=self.flash, **kwargs)
        if name == "dropout":
            return _dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        half = torch.get_autocast_dtype("cuda")
        if name in HALVED:
            return tree_map(lambda x: self._halved(x, half), (args, kwargs))  # type: ignore[no-any-return]
        if name in FULL:
            return tree_map(_full, (args, kwargs))  # type: ignore[no-any-return]
        if name in FULL_RESULT and "dtype" not in kwargs and args and _is_half(args[0]):
            return args, {**kwargs, "dtype": torch.float32}
        if name in WIDEST and any(_is(x, torch.float32) for x in torch.utils._pytree.tree_leaves(args)):
            return tree_map(_full, (args, kwargs))  # type: ignore[no-any-return]
        return args, kwargs

    def _halved(self, x: Any, half: torch.dtype) -> Any:
        if not _is(x, torch.float32):
            return x.to(half) if _is_half(x) else x
        if not (x.requires_grad and x.is_leaf and not x._is_view()):
            return x.to(half)
        if x not in self.copies:
            self.copies[x] = x.to(half)
        return self.copies[x]


def _is(x: Any, dtype: torch.dtype) -> bool:
    return isinstance(x, Tensor) and x.is_meta and x.dtype == dtype


def _is_half(x: Any) -> bool:
    return _is(x, torch.bfloat16) or _is(x, torch.float16)


def _full(x: Any) -> Any:
    return x.float() if _is_half(x) else x


def _dropout(func: Any, x: Tensor, p: float = 0.5, train: bool = True, *args: Any, **kwargs: Any) -> Tensor:
    """CUDA keeps one byte per element for the backward pass, others a factor."""
    train = kwargs.pop("training", train)
    if not train or not p or args or kwargs.get("inplace"):
        return func(x, p, train, *args, **kwargs)  # type: ignore[no-any-return]
    return torch.native_dropout(x, p, True)[0]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    flash: bool = True,
) -> Tensor:
    """Attention by the kernel that CUDA takes: flash in half precision, else the memory-efficient one."""
    aten = torch.ops.aten
    plain = query.dim() == 4 and not enable_gqa and query.shape[-1] == value.shape[-1]
    if plain and flash and attn_mask is None and _is_half(query) and query.shape[-1] <= FLASH_HEAD:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
    if plain and (attn_mask is None or attn_mask.dtype == query.dtype) and query.shape[-1] % 4 == 0:
        needs_sums = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
            query, key, value, attn_mask, needs_sums, dropout_p, is_causal, scale=scale
        )[0]
    return torch._C._nn.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


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
    if cuda is not None:
        changes += [
            ("torch.optim.optimizer._get_foreach_kernels_supported_devices", lambda: ["cuda", "meta"]),
            ("torch.clear_autocast_cache", _clearing(cuda, torch.clear_autocast_cache)),
            ("torch.autograd._engine_run_backward", _with(cuda, torch.autograd.graph._engine_run_backward)),
        ]
    with ExitStack() as stack:
        for name, value in changes:
            stack.enter_context(patch(name, value))
        if cuda is not None:
            stack.enter_context(cuda)
        yield


def _clearing(cuda: CudaSemantics, clear: Callable[[], None]) -> Callable[[], None]:
    def cleared() -> None:
        cuda.copies.clear()
        clear()

    return cleared


def _with(cuda: CudaSemantics, run: Callable[..., Any]) -> Callable[..., Any]:
    """torch takes a mode away while it handles a call, and `backward` is one: recomputed layers would not see it."""

    def running(*args: Any, **kwargs: Any) -> Any:
        if cuda in torch.overrides._get_current_function_mode_stack():
            return run(*args, **kwargs)
        with cuda:
            return run(*args, **kwargs)

    return running
