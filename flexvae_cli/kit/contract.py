"""Holds an installed plugin to its contract, in a process of its own: `python -m flexvae_cli.kit.contract NAME`.

It prints JSON, a list of findings. The process is new, so that what loading the plugin costs and moves can be seen.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.metadata import entry_points
from typing import Any, Literal

from flexvae_cli import plugins
from flexvae_cli.api import LayerSpec, Spec
from flexvae_cli.api.checks import Case
from flexvae_cli.api.state_checks import switches
from flexvae_cli.api.testing import examined
from flexvae_cli.entry_points import COMMAND, CORE, PLUGINS, Claim, installed_commands
from flexvae_cli.faults import isolated, place_of
from flexvae_cli.kit.distribution import normal

HEAVY = ("torch", "torchvision", "numpy")
"""What loading a plugin must not import: every command would wait for it."""
UNTOUCHED = {
    "torch's default dtype": "torch.float32",
    "torch's default device": "cpu",
    "torch's gradient mode": "True",
    "torch's deterministic mode": "False",
}
"""How a plugin that imports torch finds it."""
ADVICE = ("torch.export",)
"""Checks whose failure costs only those who use what they check."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says of one part of a plugin.

    Attributes:
        subject: the part, as in `layer Sine`.
        check: its name.
        state: `mend` must be mended, `advice` should; `skipped` was not tried.
        says: what is wrong, or why it was not tried.
        where: the file and line that it is about.
    """

    subject: str
    check: str
    state: Literal["ok", "mend", "advice", "skipped"] = "ok"
    says: tuple[str, ...] = ()
    where: str = ""


def findings(name: str) -> Iterator[Finding]:
    """Everything that is found of an installed distribution."""
    every, mine = entry_points(group=PLUGINS), (CORE, normal(name))
    wanted = [point for point in every if point.dist and normal(point.dist.name) in mine]
    commands = [claim for claim in installed_commands() if normal(claim.distribution) == normal(name)]
    if not commands and normal(name) not in {normal(point.dist.name) for point in wanted if point.dist}:
        hint = f'[project.entry-points.{PLUGINS}]\n{name} = "module.that.has.the.hooks"'
        yield Finding("plugin", "entry point", "mend", (f"there is none in the group {PLUGINS}; write\n{hint}",))
        return
    importer, before = Importer(), {**UNTOUCHED, **surroundings()}
    sys.meta_path.insert(0, importer)
    loaded = plugins.load(wanted, {})
    sys.meta_path.remove(importer)
    moved = [what for what, state in surroundings().items() if state != before.get(what, state)]
    brought = [plugin for plugin in loaded.found if normal(plugin.distribution) == normal(name)]
    for plugin in brought:
        yield from _loading(plugin)
    yield from _cost(brought, importer, moved)
    for claim in commands:
        yield from of_command(claim)
    for plugin in brought:
        for spec in plugin.specs:
            yield from of_spec(spec)


def _loading(plugin: plugins.Plugin) -> Iterator[Finding]:
    state: Literal["ok", "mend"] = "mend" if plugin.problems else "ok"
    yield Finding("plugin", f"entry point {plugin.name}", state, plugin.problems)


def _cost(mine: Sequence[plugins.Plugin], importer: Importer, moved: list[str]) -> Iterator[Finding]:
    """What it costs those who only have it installed."""
    if importer.first:
        module, where = importer.first
        what = f"loading it imports {module}, for which every command then waits; import it in the factories"
        yield Finding("plugin", "imports", "mend", (what,), where)
    else:
        yield Finding("plugin", "imports")
    seconds = sum(plugin.seconds for plugin in mine)
    slow = f"loading it takes {seconds:.1f} s, for which every command waits; import late what is large"
    late = seconds > plugins.SLOW
    yield Finding("plugin", "import time", "advice" if late else "ok", (slow,) if late else ())
    says = tuple(f"loading it changes {what}" for what in moved)
    yield Finding("plugin", "global state", "mend" if says else "ok", says)


class Importer(MetaPathFinder):
    """Sees who imports something heavy first."""

    def __init__(self) -> None:
        self.first: tuple[str, str] | None = None

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:  # noqa: ARG002
        if fullname in HEAVY and self.first is None:
            frames = [f for f in traceback.extract_stack()[:-1] if not f.filename.startswith("<frozen importlib")]
            self.first = fullname, f"{frames[-1].filename}:{frames[-1].lineno}"


def surroundings() -> dict[str, Any]:
    """What belongs to the whole process, by what a message calls it; torch's own only where torch is loaded."""
    found: dict[str, Any] = {
        "Python's random numbers": random.getstate(),
        "the warning filters": list(warnings.filters),
        "the environment": dict(os.environ),
        "the working directory": os.getcwd(),  # noqa: PTH109
        "what a signal does": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }
    if "torch" in sys.modules:
        found |= {f"torch's {name}": str(read()) for name, (read, _) in switches().items()}
    return found


def of_spec(spec: Spec) -> Iterator[Finding]:
    """The contract of one layer, bottleneck, loss or whatever else there are specs of."""
    subject, where = f"{spec.kind} {spec.name}", place_of(spec.factory)
    needed = [param.name for param in spec.params if param.required]
    if not isinstance(spec, LayerSpec) and needed:
        given = ["spec", *(["FILE", "LIKE"] if spec.kind == "reader" else []), *(f"{name}=..." for name in needed)]
        call = f"check_{spec.kind}({', '.join(given)})"
        yield Finding(subject, "contract", "skipped", (f"it needs values; try it in a test with {call}",), where)
        return
    more = {"torch.export": exported} if isinstance(spec, LayerSpec) else {}
    for check, says in examined(spec, more).items():
        if check == "meta device" and isinstance(spec, LayerSpec) and not spec.meta:
            yield Finding(subject, check, "skipped", ("its spec says meta=False",), where)
        elif says:
            yield Finding(subject, check, "advice" if check in ADVICE else "mend", tuple(says), where)
        else:
            yield Finding(subject, check)


def of_command(claim: Claim) -> Iterator[Finding]:
    """A subcommand has a fitting name, can be imported and called, and says what it does."""
    subject, problems = f"command {claim.name}", list[str]()
    if not COMMAND.fullmatch(claim.name):
        problems.append("a command's name is small letters and digits, a letter first, words joined by '-'")
    found = isolated(claim.point.load, problems, "import fails", claim.package)
    if not problems and not callable(found):
        problems.append(f"{claim.point.value} is a {type(found).__name__}; a command is a function or a typer.Typer")
    yield Finding(subject, "loads", "mend" if problems else "ok", tuple(problems))
    if inspect.isfunction(found):
        says = () if inspect.getdoc(found) else ("the docstring is its help, and there is none",)
        yield Finding(subject, "docs", "mend" if says else "ok", says, place_of(found))


def exported(case: Case) -> Iterator[str]:
    """`torch.export` of the module in evaluation, which then has to give what the module gives."""
    import torch
    from torch import nn

    class Tensors(nn.Module):
        """A layer, or the latent of a bottleneck."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = case.module()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.inner(x)
            return y if isinstance(y, torch.Tensor) else y.z

    module, x = Tensors().eval(), case.sample()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about itself
        again = torch.export.export(module, (x,)).module()(x)
        if not torch.allclose(again, module(x), rtol=1e-4, atol=1e-5):
            yield "what torch.export makes of it gives another output"


def main(name: str) -> None:
    """Print the findings; what the plugin prints, in whatever way and however late, goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout:
        os.dup2(2, 1)
        json.dump([asdict(finding) for finding in findings(name)], stdout)


if __name__ == "__main__":
    main(sys.argv[1])
