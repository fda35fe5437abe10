"""Imported by the fork server of the data workers, and by nothing else.

It imports once what every worker needs, and stays when a batch system sends SIGTERM to the whole process group: it
leaves with the training process, which may still be saving a checkpoint and must not lose its workers meanwhile.
"""

from __future__ import annotations

import signal

from flexvae_cli.engine.data import loader

__all__ = ["loader"]

signal.signal(signal.SIGTERM, signal.SIG_IGN)
