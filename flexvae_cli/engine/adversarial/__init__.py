"""Adversarial training: a discriminator learns to tell reconstructions from samples, the autoencoder to pass."""

from flexvae_cli.engine.adversarial.adversary import Adversary, make_adversary
from flexvae_cli.engine.adversarial.balance import last_layer

__all__ = ["Adversary", "last_layer", "make_adversary"]
