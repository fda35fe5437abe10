"""`flexvae graft`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import (
    MAX_BAD,
    Faults,
    MaxBadOption,
    ModelArgument,
    Weights,
    WeightsOption,
    check_inputs,
    model_files,
)
from flexvae_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from flexvae_cli.engine.grafting.graft import Grafted
    from flexvae_cli.engine.grafting.moved import Moved
    from flexvae_cli.engine.model import Model
    from flexvae_cli.net import Net


def graft(
    model: ModelArgument,
    encoder: Annotated[
        Path | None, typer.Argument(metavar="ENCODER", help="The edited structure file.", show_default=False)
    ] = None,
    decoder: Annotated[
        Path | None,
        typer.Argument(metavar="DECODER", help="That of the decoder; by default the model's.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="BUNDLE", help="The new folder of the new model.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="A config that names the structures, the bottleneck and the input."
        ),
    ] = None,
    bottleneck: Annotated[
        str | None, typer.Option("--bottleneck", metavar="CODE", help="By default the model's.", show_default=False)
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="A sample of the new net; by default like the model's."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="What to measure the move on; by default the data of the model's run."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most samples to measure on.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the weights that are new.")] = 0,
    weights: WeightsOption = Weights.EMA,
    max_bad: MaxBadOption = MAX_BAD,
    as_json: JsonOption = False,
) -> None:
    """Carry trained weights over to an edited structure.

    Layers are matched by a diff of the expanded lists of codes. What is new starts as the identity where it can, what
    became wider reads nothing new yet, a 2-D kernel becomes the middle of a 3-D one.

    Tells for each layer what was done, and how far latents and reconstructions moved: 0 where nothing changed. The
    bundle is a model as any other; training starts from it with `[model] init`.
    """
    from flexvae_cli.errors import UsageError

    if output is None:
        raise UsageError("graft wants the folder to write", hint="add -o BUNDLE")
    if (encoder is None) == (config is None):
        raise UsageError("graft wants the edited structures", hint="give ENCODER and maybe DECODER, or --config FILE")
    if config is not None and (bottleneck or input_shape):
        raise UsageError("--config says what the bottleneck and the input are", hint="leave the option out")
    check_inputs(model, *([data] if data else []), device="cpu")
    from flexvae_cli.engine.folders import require_new

    require_new(output)
    found = model_files(model, weights)
    from flexvae_cli.engine.grafting.bundle import write_grafted
    from flexvae_cli.engine.grafting.graft import graft as grafted
    from flexvae_cli.engine.grafting.graft import trained
    from flexvae_cli.engine.grafting.moved import moved, samples_for
    from flexvae_cli.engine.model import Model

    old = trained(found)
    net = _net_of(config) if config else _net_from(old, encoder, decoder, bottleneck, input_shape)
    samples, origin = samples_for(old, data, limit, seed, partial(Faults, max_bad))
    vae, told = grafted(old, net, seed)
    moves = moved(old, Model(vae, net, found.model, found.path, found.weights_hash), samples)
    write_grafted(found, output, vae, net, same_latents=moves["latent"].distance == 0 and not moves["latent"].note)
    if as_json:
        ui.json(_document(told, moves, net, output, len(samples), origin))
    else:
        _print(told, moves, len(samples), origin)
        ui.say(f'wrote {output}; next: flexvae train with [model] init = "{output}"')


def _net_of(config: Path) -> Net:
    """The net of a config.

    Raises:
        UsageError: everything that is wrong with it.
    """
    from flexvae_cli.config import find_config, load_config
    from flexvae_cli.errors import Problem, UsageError
    from flexvae_cli.fallback import meta_fallback
    from flexvae_cli.plan import net_of
    from flexvae_cli.plugins import installed

    loaded, problems = load_config(find_config(config)), list[Problem]()
    registry = installed().registry.preferring(loaded.settings.plugins.prefer)
    net = net_of(loaded, registry, meta_fallback(), problems)
    if net is None or problems:
        raise UsageError(*problems)
    net.checked()
    return net


def _net_from(
    old: Model, encoder: Path | None, decoder: Path | None, bottleneck: str | None, written: str | None
) -> Net:
    """The net of structure files, and of the model where they leave something out.

    Raises:
        UsageError: the parts do not fit.
    """
    from flexvae_cli.errors import UsageError
    from flexvae_cli.fallback import meta_fallback
    from flexvae_cli.inspection import read_shape
    from flexvae_cli.inspection.assumed_input import assumed_input
    from flexvae_cli.net import make_net
    from flexvae_cli.plugins import installed
    from flexvae_cli.structure import read_structure

    registry, fallback = installed().registry.preferring(old.net.prefer), meta_fallback()
    assert encoder is not None
    edited = read_structure(encoder, registry)
    kept = old.net.decoder if decoder is None else read_structure(decoder, registry)
    if written:
        shape = read_shape(written)
    else:
        like = assumed_input(edited, fallback)
        missing = len(like) - len(old.net.shape)
        shape = (like[0], *(old.net.shape[1:2] * max(0, missing)), *old.net.shape[1:])
    net = make_net(edited, bottleneck or old.net.bottleneck.code, kept, shape, registry, fallback)
    problems: list[Any] = []
    net.traces(shape, problems)
    if problems:
        raise UsageError(*problems)
    net = net if written else replace(net, shape=(shape[0], *net.fitting(shape[1:])))
    net.checked()
    return net


def _print(told: tuple[Grafted, ...], moves: dict[str, Moved], count: int, origin: str) -> None:
    columns = (
        ui.Column("part"),
        ui.Column("#", number=True),
        ui.Column("code"),
        ui.Column("was", optional=2),
        ui.Column("what was done"),
        ui.Column("carried", number=True, optional=1),
        ui.Column("notes", wrap=True),
    )
    rows: list[tuple[str, ...] | None] = []
    for index, each in enumerate(told):
        begins = index == 0 or told[index - 1].part != each.part
        if begins and rows:
            rows.append(None)
        share = f"{each.carried:,} of {each.numbers:,}" if each.numbers else ""
        done = (each.code, each.was if each.was != each.code else "", each.action, share, "; ".join(each.notes))
        rows.append((each.part if begins else "", each.key, *done))
    ui.table(columns, rows)
    ui.data("")
    of = f"on {count} samples of {origin}" if origin != "random numbers" else f"on {count} samples of random numbers"
    for name, each_move in moves.items():
        far = "not comparable" if each_move.distance is None else f"{each_move.distance:.3g}"
        ui.data(f"{name}: moved by {far} (relative L2, {of})" + (f"; {each_move.note}" if each_move.note else ""))


def _document(
    told: tuple[Grafted, ...], moves: dict[str, Moved], net: Net, output: Path, count: int, origin: str
) -> dict[str, Any]:
    from dataclasses import asdict

    from flexvae_cli.engine.grafting.moved import document

    return {
        "bundle": str(output),
        "input": list(net.shape),
        "layers": [asdict(each) for each in told],
        "moved": {"samples": count, "data": origin, **document(moves)},
    }
