"""Measuring trained models: images, latents, and one model against another."""
