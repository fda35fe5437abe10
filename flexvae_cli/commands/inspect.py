"""`flexvae inspect`: a table, a tree or a picture of a net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.api.trace import Reach
    from flexvae_cli.inspection import Inspection, Line, Note, Part
    from flexvae_cli.structure import Node

Target = Annotated[
    Path | None,
    typer.Argument(
        show_default=False, help="Structure file, config, run, checkpoint or bundle; by default flexvae.toml."
    ),
]
InputOption = Annotated[
    str | None, typer.Option("--input", metavar="CxHxW", help="Channels x size to trace with, as in 3x256x256.")
]
FusedOption = Annotated[
    bool, typer.Option("--fused", help="Also list the layers that compute as one; builds the net, so it takes longer.")
]
TreeOption = Annotated[bool, typer.Option("--tree", help="Show the entries as they are written, not expanded.")]
ImageOption = Annotated[
    Path | None, typer.Option("--image", metavar="FILE", help="Also draw the net, to a .svg or .png file.")
]


def inspect(
    target: Target = None,
    config: ConfigOption = None,
    input_shape: InputOption = None,
    overrides: SetOption = None,
    tree: TreeOption = False,
    image: ImageOption = None,
    fused: FusedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show every layer of a net.

    Its shapes, parameters, multiply-adds and receptive field, and what looks wrong.

    A config or a model is followed through encoder, bottleneck and decoder in one go. Shapes and multiply-adds (MACs)
    are those of one sample; the receptive field is in positions of the net's input.
    """
    from flexvae_cli.errors import UsageError
    from flexvae_cli.inspection import inspect_config, inspect_target, read_shape

    if target is not None and config is not None:
        raise UsageError(f"--config {config} and the target {target} are two things to show", hint="give one of them")
    shape = read_shape(input_shape) if input_shape else None
    given = overrides or ()
    found = inspect_config(config, shape, given) if config else inspect_target(target, shape, given)
    for problem in found.model.passed_over if found.model else ():
        ui.warn(f"passed over: {problem}")
    if image is not None:
        from flexvae_cli.inspection.drawing import draw

        draw(found, image)
        ui.say(f"drew {image}")
    if as_json:
        from flexvae_cli.inspection.document import document

        ui.json(document(found) | ({"fused": _fused(found)} if fused else {}))
    elif tree:
        print_tree(found)
    else:
        print_table(found)
    if fused and not as_json:
        for each in _fused(found):
            ui.data(f"where it pays, {each['what']}: {'; '.join(' + '.join(names) for names in each['layers'])}")


def _fused(found: Inspection) -> list[dict[str, Any]]:
    from flexvae_cli.engine.fusing import would_fuse

    parts = {part.name: part.structure.expanded() for part in found.parts if part.structure}
    ways: dict[str, list[list[str]]] = {}
    for each in would_fuse(parts):
        ways.setdefault(each.what, []).append(list(each.names))
    return [{"what": what, "layers": layers} for what, layers in ways.items()]


def print_table(found: Inspection) -> None:
    """The expanded net, a row per layer, with totals and numbered notes."""
    several = len(found.parts) > 1
    columns: Sequence[ui.Column] = (
        ui.Column("part"),
        ui.Column("#", number=True),
        ui.Column("code"),
        ui.Column("in", optional=2),
        ui.Column("out"),
        ui.Column("layer", optional=1),
        ui.Column("parameters", number=True),
        ui.Column("share", number=True, optional=3),
        ui.Column("bits", number=True),
        ui.Column("MACs", number=True),
        ui.Column("field", number=True),
        ui.Column("note"),
    )
    notes = found.notes
    rows = [cells for part in found.parts for cells in (*_rows(part, found, notes), None)][:-1]
    figures = ("", "", "", f"{found.parameters:,}", "100 %", "", human(found.macs), "", "")
    total = ("total", "", "", *figures) if several else ("", "", "total", *figures)
    there = {"part": several, "bits": bool(found.bits), "note": bool(notes)}  # other columns always have something
    used = [there.get(column.title, True) for column in columns]
    rows = [row and tuple(compress(row, used)) for row in rows]
    ui.table(list(compress(columns, used)), rows, total=tuple(compress(total, used)))
    ui.data("")
    _print_summary(found)
    _print_notes(found)


def _rows(part: Part, found: Inspection, notes: tuple[Note, ...]) -> Iterator[tuple[str, ...]]:
    from flexvae_cli.api.trace import text

    bits = found.bits
    for index, line in enumerate(part.lines):
        marks = [str(n) for n, note in enumerate(notes, 1) if (part.name, line.key) in note.places]
        counted = line.row is not None
        yield (
            part.name if index == 0 else "",
            line.key,
            line.code,
            text(line.takes),
            text(line.gives),
            line.layer,
            f"{line.parameters:,}" if counted else "",
            _share(line.parameters, found.parameters) if counted else "",
            str(bits.get(f"{part.name}.{line.key}", "")),
            human(line.macs) if counted else "",
            field(line.reach),
            ",".join(marks),
        )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def field(reach: Reach) -> str:
    """A receptive field: `29`, `29x15`, `29*` where statistics of the whole input enter, or `all`."""
    if reach.everywhere:
        return "all"
    sizes = reach.field
    one = str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))
    return one + "*" * reach.statistics


def human(number: float) -> str:
    """`49,539,465,216` -> `49.5 G`."""
    units = ["", " k", " M", " G", " T", " P", " E"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.3g}{units[0]}"


def _print_summary(found: Inspection) -> None:
    from flexvae_cli.api.trace import text

    assumed = " (assumed; choose with --input)" if found.assumed else ""
    path = f"input {text(found.shape)}{assumed} -> "
    if found.latent:
        path += f"latent {text(found.latent)} ({found.compression:.4g} times fewer numbers) -> "
    ui.data(f"{path}output {text(found.gives)}")
    size = f"{4 * found.parameters / 1e6:,.1f} MB"
    ui.data(f"{found.parameters:,} parameters ({size} in fp32), {human(found.macs)} multiply-adds per sample")
    if found.bits:
        few, many = min(found.bits.values()), max(found.bits.values())
        ui.data(f"the weights of {len(found.bits)} layers are stored in {f'{few} to ' * (few < many)}{many} bits")
    if found.model:
        made_by = f"made by flexvae {found.flexvae}; " if found.flexvae else ""
        plugins = ", ".join(f"{name} {version}" for name, version in found.plugins.items())
        ui.data(f"{made_by}its codes come from {plugins}")
    if found.multiples:
        ui.data(f"takes sizes that {text(found.multiples)} divides; others are padded and cropped back")
    lines = [line for part in found.parts for line in part.lines]
    if any(line.reach.statistics and not line.reach.everywhere for line in lines):
        ui.data("* and the means and variances that norms take over the whole input")


def _print_notes(found: Inspection) -> None:
    for number, note in enumerate(found.notes, 1):
        ui.data(f"note {number}: {note.text}" + (f" ({_places(note)})" if note.places else ""))


def _places(note: Note) -> str:
    """`encoder 3, 6; decoder 0`; a lone structure's layers by number alone."""
    parts = dict.fromkeys(part for part, _ in note.places)
    listed = {part: ", ".join(key for p, key in note.places if p == part) for part in parts}
    return "; ".join(f"{'layer' if part == 'structure' else part} {keys}" for part, keys in listed.items())


def print_tree(found: Inspection) -> None:
    """The entries as the file has them, with the parameters of each, its repeats counted in."""
    columns = (
        ui.Column("entry"),
        ui.Column("in"),
        ui.Column("out"),
        ui.Column("parameters", number=True),
        ui.Column("share", number=True),
    )
    rows: list[tuple[str, ...]] = []
    for part in found.parts:
        name = f"{part.name}  {part.structure.name}" if part.structure else part.name
        rows.append(_entry(name, part.lines, found.parameters))
        if part.structure:
            rows += _entries(part.structure.nodes, part, found.parameters, "  ", 1)
        else:
            rows += [_entry(f"  {line.code}", (line,), found.parameters) for line in part.lines]
    ui.table(columns, rows)
    ui.data("")
    _print_summary(found)
    _print_notes(found)


def _entries(
    nodes: tuple[Node, ...], part: Part, parameters: int, indent: str, times: int
) -> Iterator[tuple[str, ...]]:
    """Rows of entries that stand inside `times` repeats: parameters of all of them, shapes of the first."""
    from flexvae_cli.structure import Layer, Repeat

    for node in nodes:
        lines = [line for line in part.lines if line.where == node.where or line.where.startswith(f"{node.where}.")]
        once = len(lines) // times
        if isinstance(node, Layer):
            count = f"{node.bound.count}*" if node.bound.count > 1 else ""
            yield _entry(f"{indent}{count}{node.bound.code}", lines, parameters, once)
        elif isinstance(node, Repeat):
            yield _entry(f"{indent}repeat {node.count}", lines, parameters, once)
            yield from _entries(node.body, part, parameters, indent + "  ", times * node.count)
        else:
            yield _entry(f"{indent}residual", lines, parameters, once)
            yield from _entries(node.body, part, parameters, indent + "  ", times)
            if node.shortcut:
                yield (f"{indent}shortcut", "", "", "", "")
                yield from _entries(node.shortcut, part, parameters, indent + "  ", times)


def _entry(name: str, lines: Sequence[Line], parameters: int, once: int = 0) -> tuple[str, ...]:
    from flexvae_cli.api.trace import text

    own = sum(line.parameters for line in lines)
    return name, text(lines[0].takes), text(lines[once - 1].gives), f"{own:,}", _share(own, parameters)
