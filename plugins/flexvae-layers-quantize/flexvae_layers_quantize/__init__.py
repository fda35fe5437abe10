"""Quantizers for FlexVAE."""
