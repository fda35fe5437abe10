"""The command line: mounts the commands and turns errors into exit codes. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from flexvae_cli import __version__, ui
from flexvae_cli.commands import config, data, latents, plugins
from flexvae_cli.commands._plugin_commands import WithPlugins
from flexvae_cli.commands.compare import compare
from flexvae_cli.commands.decode import decode
from flexvae_cli.commands.encode import encode
from flexvae_cli.commands.eval import evaluate
from flexvae_cli.commands.export import export
from flexvae_cli.commands.graft import graft
from flexvae_cli.commands.import_pt import import_pt
from flexvae_cli.commands.infer import infer
from flexvae_cli.commands.inspect import inspect
from flexvae_cli.commands.interpolate import interpolate
from flexvae_cli.commands.layers import layers
from flexvae_cli.commands.mem import mem
from flexvae_cli.commands.mirror import mirror
from flexvae_cli.commands.quantize import quantize
from flexvae_cli.commands.replay import replay
from flexvae_cli.commands.report import report
from flexvae_cli.commands.sample import sample
from flexvae_cli.commands.stats import stats
from flexvae_cli.commands.train import train
from flexvae_cli.errors import DISK_FULL, Exit, FlexVAEError, ResourceError, UsageError
from flexvae_cli.signals import ending_in_order
from flexvae_cli.streams import open_streams

COMMANDS: dict[str, Callable[..., None]] = {
    "inspect": inspect,
    "layers": layers,
    "mirror": mirror,
    "train": train,
    "mem": mem,
    "infer": infer,
    "eval": evaluate,
    "compare": compare,
    "stats": stats,
    "encode": encode,
    "decode": decode,
    "sample": sample,
    "interpolate": interpolate,
    "export": export,
    "graft": graft,
    "quantize": quantize,
    "import-pt": import_pt,
    "report": report,
    "replay": replay,
}

app = typer.Typer(
    name="flexvae",
    cls=WithPlugins,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help takes half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(config.app, name="config")
app.add_typer(latents.app, name="latents")
app.add_typer(data.app, name="data")
app.add_typer(plugins.app, name="plugins")


def _version(wanted: bool) -> None:
    if wanted:
        ui.data(f"flexvae {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but results, warnings and errors.")] = False,
    strict_plugins: Annotated[
        bool, typer.Option("--strict-plugins", help="Stop with exit code 7 where a plugin has a problem.")
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Define, check, train, measure and ship autoencoders whose encoder and decoder are lists of layer codes."""
    ui.output.quiet = quiet
    if strict_plugins:
        from flexvae_cli.entry_points import command_problems, installed_commands
        from flexvae_cli.plugins import installed

        core = getattr(context.command, "commands", {})
        installed().require_sound(command_problems(installed_commands(), core))


def run() -> None:
    """The entry point of `flexvae`: never a traceback, unless `FLEXVAE_DEBUG=1` asks for it."""
    open_streams()
    if os.environ.get("FLEXVAE_DEBUG") == "1":
        app()
        return
    try:
        with ending_in_order(), _threads_in_a_line():
            app()
    except FlexVAEError as error:
        ui.error(error)
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        told = _told(error)
        ui.error(told)
        sys.exit(told.code)


@contextmanager
def _threads_in_a_line() -> Iterator[None]:
    """A thread of a library that fails (TensorBoard's, on a full disk) is a warning; whoever waits for it says more."""
    before = threading.excepthook
    threading.excepthook = lambda args: ui.warn(_told(args.exc_value).problems[0].what)  # type: ignore[arg-type]
    try:
        yield
    finally:
        threading.excepthook = before


def _told(error: Exception) -> FlexVAEError:
    """What was not foreseen, in one line: a lack of the machine's, or else our fault."""
    first = (str(error).splitlines() or [""])[0]
    if _is_out_of_memory(error):
        hint = "take a smaller batch; `flexvae mem` finds the largest that trains"
        return ResourceError(f"out of memory: {first or type(error).__name__}", hint=hint)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ResourceError(f"no space left: {first}", hint="make room on the disk")
    if "does not have a deterministic implementation" in first:  # as torch words it
        hint = "set train.deterministic = false, or take another layer; nearest upsampling has one"
        return UsageError(f"not deterministic on this device: {first}", hint=hint)
    from flexvae_cli.faults import culprit

    who = culprit(error)
    by = f" in the plugin {who}" if who else ""
    return FlexVAEError(f"unexpected {type(error).__name__}{by}: {first}", hint="FLEXVAE_DEBUG=1 shows where")


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # then it is not torch's memory, and importing it would take more
        return isinstance(error, MemoryError) or "failed to map segment" in str(error)
    from flexvae_cli.engine.device import is_out_of_memory

    return is_out_of_memory(error)
