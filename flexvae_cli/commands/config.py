"""`flexvae config`: show, check, explain-loss, schema, new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.commands.explain_loss import explain_loss
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.plan import Plan

app = typer.Typer(no_args_is_help=True, help="Show, check and write configs.")
app.command("explain-loss")(explain_loss)


@app.command()
def show(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Print the config with all that it extends and every --set merged, paths in full."""
    from flexvae_cli.config.toml_writer import to_toml

    document = loaded_config(config, overrides).document
    if as_json:
        ui.json(document)
    else:
        ui.data(to_toml(document))


@app.command()
def check(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a config, the structure files it names, and that they fit together; every problem is told at once."""
    from flexvae_cli.plan import make_plan, require_inputs

    loaded = loaded_config(config, overrides)
    result = summary(loaded.path, make_plan(loaded))
    require_inputs(loaded.settings)
    if as_json:
        ui.json(result)
    else:
        ui.data("{config} is fine: {input} -> latent {latent}, {parameters:,} parameters".format_map(result))


def summary(path: Path, plan: Plan) -> dict[str, Any]:
    """What `check` tells of a config."""
    from flexvae_cli.api.trace import text

    return {
        "config": str(path),
        "input": text(plan.net.shape),
        "latent": text(plan.bottleneck.gives),
        "parameters": plan.parameters,
    }


@app.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors that complete and check TOML."""
    from flexvae_cli.config import json_schema

    ui.data(json.dumps(json_schema(), indent=2))


@app.command()
def new(
    name: Annotated[str | None, typer.Argument(help="A shipped config, see --list.")] = None,
    into: Annotated[Path, typer.Option(help="The folder that gets the folder configs.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there and differ.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the shipped configs.")] = False,
) -> None:
    """Write a shipped config and its structure files to configs/."""
    from flexvae_cli.config.shipped import summaries, write_out
    from flexvae_cli.errors import UsageError

    if listing:
        for shipped, purpose in summaries().items():
            ui.data(f"{shipped}: {purpose}")
    elif name is None:
        raise UsageError("new wants the name of a config", hint="list them with: flexvae config new --list")
    else:
        files = write_out(name, into, force)
        for file in files:
            ui.say(f"wrote {file}")
        ui.say(f"next: flexvae train --config {files[0]}")
