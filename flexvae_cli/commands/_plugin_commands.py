"""The subcommands that plugins bring: listed from metadata alone, imported when they are called."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from flexvae_cli.entry_points import Claim, claimed_by_several, installed_commands, offered
from flexvae_cli.errors import PluginError, Problem, UsageError, listed


class WithPlugins(TyperGroup):
    """The core's commands, and behind them those of plugins; a broken one is met by those who call it alone."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [*self.commands, *offered(installed_commands(), self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; of a plugin's what can be told without importing it."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        claims = offered(installed_commands(), self.commands).get(cmd_name)
        return _announced(cmd_name, claims) if claims else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        claims = [] if args[0] in self.commands else offered(installed_commands(), self.commands).get(args[0], [])
        if len(claims) > 1:
            raise UsageError(claimed_by_several(args[0], claims))
        return (args[0], _loaded(claims[0]), args[1:]) if claims else super().resolve_command(ctx, args)


def _announced(name: str, claims: list[Claim]) -> Any:
    who = listed([f"{claim.distribution} {claim.version}" for claim in claims], "", "and")
    return _single(name, lambda: None, help=f"From {who}.")


def _single(name: str, function: Any, **settings: Any) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, **settings)(function)
    return get_command(app)


def _loaded(claim: Claim) -> Any:
    """The command of an entry point: a function as typer takes it, or a `typer.Typer`.

    Raises:
        PluginError: it cannot be imported, or is neither.
    """
    from flexvae_cli.faults import isolated

    problems: list[str] = []
    found = isolated(claim.point.load, problems, "import fails", claim.package)
    command = None
    if isinstance(found, typer.Typer):
        command = isolated(lambda: get_command(found), problems, "is no command")
    elif callable(found):
        command = isolated(lambda: _single(claim.name, found), problems, "is no command")
    elif not problems:
        problems.append(f"{claim.point.value} is a {type(found).__name__}; a command is a function or a typer.Typer")
    if problems:
        raise PluginError(*(Problem(problem, f"command {claim}") for problem in problems))
    return command
