"""Readers of files, each for one kind: from a file to numbers, and back to a file of the same kind."""
