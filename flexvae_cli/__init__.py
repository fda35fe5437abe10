"""FlexVAE: autoencoders whose encoder and decoder are lists of layer codes in JSON.

Importing this package costs nothing; `load_model` imports torch when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from flexvae_cli.engine.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def load_model(path: str | Path, *, device: str = "cpu") -> Model:
    """Load a trained autoencoder as an `nn.Module`, ready for `encode` and `decode`.

    Args:
        path: a run directory, a checkpoint directory inside it, or a bundle made by `flexvae export`.
        device: where to put the weights: `cpu`, `cuda`, `cuda:1`, `mps`.

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

    return load(path, device=device)
