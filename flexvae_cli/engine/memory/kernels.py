"""Stand-ins on meta tensors for kernels that devices have and meta has not: what they hold is what counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLASH_HEAD = 256  # the largest head that CUDA's flash attention takes


def is_of(x: Any, dtype: torch.dtype) -> bool:
    return isinstance(x, Tensor) and x.is_meta and x.dtype == dtype


def is_half(x: Any) -> bool:
    return is_of(x, torch.bfloat16) or is_of(x, torch.float16)


def dropout(func: Any, x: Tensor, p: float = 0.5, train: bool = True, *args: Any, **kwargs: Any) -> Tensor:
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
    if plain and flash and attn_mask is None and is_half(query) and query.shape[-1] <= FLASH_HEAD:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
    if plain and (attn_mask is None or attn_mask.dtype == query.dtype) and query.shape[-1] % 4 == 0:
        needs_sums = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
            query, key, value, attn_mask, needs_sums, dropout_p, is_causal, scale=scale
        )[0]
    return torch._C._nn.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def attend_on_cpu(
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    """Attention by the kernel that a CPU takes; `func` where it takes none that is fused."""
    sizes = {query.shape[-1], key.shape[-1], value.shape[-1]}
    if query.dim() != 4 or dropout_p or len(sizes) > 1 or kwargs.get("enable_gqa") or query.shape[1] != key.shape[1]:
        return func(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)  # type: ignore[no-any-return]
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=kwargs.get("scale"))[0]  # type: ignore[no-any-return]


def is_mish(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return getattr(func, "__name__", "") == "mish" and len(args) == 1 and args[0].is_meta and not kwargs.get("inplace")


class Mish(torch.autograd.Function):
    """Mish with one kernel for its backward pass, as every device has it; on meta torch takes it to pieces."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return torch.empty_like(gradients[0])
