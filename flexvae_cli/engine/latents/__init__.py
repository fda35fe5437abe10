"""Latents on disk as data sets: planned, encoded, written, gone on with, checked, and read by training."""
