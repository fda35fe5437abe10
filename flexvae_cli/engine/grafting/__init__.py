"""Trained weights carried over to an edited structure."""
