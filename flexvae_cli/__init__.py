"""FlexVAE: autoencoders whose encoder and decoder are lists of layer codes in JSON.

Importing this package costs nothing; `load_model` and `LatentDataset` import torch when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    import torch

    from flexvae_cli.engine.latents.dataset import LatentDataset
    from flexvae_cli.engine.model import Model

__version__ = "0.1.0"
__all__ = ["LatentDataset", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """`LatentDataset`, whose class imports torch, is imported when it is asked for."""
    if name == "LatentDataset":
        from flexvae_cli.engine.latents.dataset import LatentDataset

        return LatentDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_model(
    path: str | Path,
    *,
    device: str = "cpu",
    fuse: Literal["auto", "on", "off"] = "auto",
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a trained autoencoder as an `nn.Module`, ready for `encode` and `decode`.

    Args:
        path: a run directory, a checkpoint directory inside it, or a bundle made by `flexvae export`.
        device: where to put the weights: `cpu`, `cuda`, `cuda:1`, `mps`.

        fuse: whether layers that follow each other compute as one, the same up to rounding: `auto` where that is
            faster, `on` wherever it can be done.
        dtype: of the `torch.autocast` under which it will be called, None for none; on a GPU the memory layout depends
            on it.

    Returns:
        The model in eval mode. `model.encode(x)` takes `(b, c, *space)` in [-1, 1] and returns the latent means,
        `model.decode(z)` returns `(b, c, *space)`, `model.preprocess(image)` turns a Pillow image into `(c, *space)`.

    Raises:
        FlexVAEError: the path holds no model, the model is damaged, or a plugin that it needs is missing.

    Example:
        >>> from flexvae_cli import load_model
        >>> model = load_model("runs/quickstart")                       # doctest: +SKIP
        >>> latents = model.encode(model.preprocess(photo)[None])       # doctest: +SKIP
    """
    from flexvae_cli.engine.model import load

    return load(path, device=device, fuse=fuse, dtype=dtype)
