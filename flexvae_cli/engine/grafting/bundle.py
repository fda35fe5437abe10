"""A grafted autoencoder written as a model, beside which the old one stays as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flexvae_cli import __version__
from flexvae_cli.engine.modelfiles import ModelFiles, write_bundle
from flexvae_cli.engine.vae import VAE
from flexvae_cli.net import Net

STALE = ("ema", "quantized", "latents")  # true of the old weights alone


def write_grafted(found: ModelFiles, target: Path, vae: VAE, net: Net, *, same_latents: bool) -> ModelFiles:
    """Write the bundle.

    Args:
        found: the old model.
        target: the new folder.
        vae: the grafted autoencoder.
        net: its structures.
        same_latents: whether the latents did not move, so that the old model's statistics are true of them as well.

    Raises:
        UsageError: `target` is there already and not an empty directory.
        DiskFullError: there is no room; nothing is left behind.
    """
    kept = {key: value for key, value in found.model.items() if key not in STALE or (key == "latents" and same_latents)}
    about = {**kept, "flexvae": __version__, **net.describe(), "grafted_from": found.weights_hash}
    return write_bundle(replace(found, model=about), target, tensors=vae.state_dict(), flexvae=__version__)
