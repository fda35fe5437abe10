"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Config file; by default flexvae.toml.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
