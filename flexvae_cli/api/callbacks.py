"""A callback describes itself as a layer does; what its factory makes is shown every event of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexvae_cli.api.events import Event
from flexvae_cli.api.spec import Spec, described

Observer = Callable[[Event], None]
"""What a callback's factory makes. Where it has a method `close()`, that is called at the end, however the run ends."""


@dataclass(frozen=True)
class CallbackSpec(Spec):
    """A spec whose product is an `Observer`."""

    @property
    def usage(self) -> str:
        """`[callbacks.csv]`, and the keys that must be given."""
        needed = [f"{param.name} = ..." for param in self.params if param.required]
        return " ".join([f"[callbacks.{self.name}]", *needed])


def callback(name: str) -> Callable[[Callable[..., Any]], CallbackSpec]:
    """Declare a callback: its factory makes an `Observer`, and its parameters are the keys of `[callbacks.NAME]`.

    The observer is called with every event, in the order in which they happen, in the process that writes the run and
    between its steps: what it does there, training waits for. One that raises is told of and shown nothing more.

    Args:
        name: of the table: letters and digits, begins with a letter, at most 32.
    """

    def declare(factory: Callable[..., Any]) -> CallbackSpec:
        spec = CallbackSpec(**described("callback", name, factory))
        if any(param.kind == "file" for param in spec.params):
            raise ValueError(f"callback {name}: a file of weights is for losses alone")
        return spec

    return declare
