"""What training tells, which plugins may see too: the events of `flexvae_cli.api.events`."""

from __future__ import annotations

from flexvae_cli.api.events import (
    Advanced,
    BadFileMet,
    Event,
    Finished,
    Logged,
    Noticed,
    Previewed,
    Saved,
    Skipped,
    Started,
    Validated,
)

__all__ = [
    "Advanced",
    "BadFileMet",
    "Event",
    "Finished",
    "Logged",
    "Noticed",
    "Previewed",
    "Saved",
    "Skipped",
    "Started",
    "Validated",
]
