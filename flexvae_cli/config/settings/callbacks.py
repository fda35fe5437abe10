"""`[callbacks.NAME]`: who else is shown what happens in a run."""

from __future__ import annotations

from pydantic import ConfigDict, JsonValue

from flexvae_cli.config.settings.values import Table


class CallbackTable(Table):
    """Switches the callback NAME on: `[callbacks.csv]` writes `metrics.csv`; plugins bring more.

    Every key is a parameter of that callback, as `flexvae layers NAME` lists them; the table may be empty.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
