"""`flexvae plugins check`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flexvae_cli.kit.contract import Finding


def check_plugin(
    target: Annotated[
        str, typer.Argument(metavar="PATH|NAME", help="A folder with a pyproject.toml, or an installed distribution.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Hold a plugin to its contract, and tell what to mend.

    Of every layer, bottleneck, loss and callback: its docs, its examples, its trace rule, gradients, state, bf16, the
    meta device, torch.export; of the whole: that it loads fast, without torch, and leaves the process alone.

    The exit code is 7 where something must be mended.
    """
    from flexvae_cli.errors import Exit
    from flexvae_cli.kit.check import check
    from flexvae_cli.kit.distribution import found

    with found(target) as plugin:
        findings = check(plugin)
    mend = sum(finding.state == "mend" for finding in findings)
    if as_json:
        about = {"distribution": plugin.name, "version": plugin.version, "to_mend": mend}
        ui.json({**about, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
        ui.data(f"\n{plugin.name} {plugin.version}: {f'{mend} to mend' if mend else 'nothing to mend'}")
    if mend:
        raise typer.Exit(Exit.PLUGIN)


def _print(findings: Sequence[Finding]) -> None:
    """A row for each part of the plugin, then what is wrong, line by line."""
    columns = (ui.Column("part"), ui.Column("to mend", wrap=True), ui.Column("passes", wrap=True))
    rows = []
    for subject in dict.fromkeys(finding.subject for finding in findings):
        of = [finding for finding in findings if finding.subject == subject]
        mend, passes = (", ".join(f.check for f in of if f.state == state) for state in ("mend", "ok"))
        rows.append((subject, mend or "-", passes))
    ui.table(columns, rows)
    for finding in findings:
        for says in finding.says:
            at = f" ({finding.where})" if finding.where else ""
            ui.data(f"{finding.state}: {finding.subject}: {finding.check}: {says}{at}")
