"""A config made into a plan: all that training needs is read, bound, traced and checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flexvae_cli import plugins
from flexvae_cli.assets import BUILTIN_SOURCES
from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.errors import DataError, ModelError, Problem, UsageError, did_you_mean
from flexvae_cli.fallback import meta_fallback
from flexvae_cli.net import Net, make_net
from flexvae_cli.objective import Term, terms_of
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registry
from flexvae_cli.structure import Structure, read_structure
from flexvae_cli.tracing import Fallback, Trace

MOST_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        net: the autoencoder.
        encoder, bottleneck, decoder: its traces at the training shape.
        terms: the loss, term by term; the first is the reconstruction.
    """

    settings: Settings
    net: Net
    encoder: Trace
    bottleneck: Trace
    decoder: Trace
    terms: tuple[Term, ...]

    @property
    def parameters(self) -> int:
        return self.encoder.parameters + self.bottleneck.parameters + self.decoder.parameters

    @property
    def output(self) -> str:
        """What the decoder gives: `samples` in [-1, 1], or `logits`."""
        return "logits" if self.terms[0].bound.spec.name == "bce" else "samples"


def make_plan(config: Config) -> Plan:
    """Check a config against the structures that it names and the plugins that are installed.

    torch is imported only where a layer has no static rule of its own.

    Raises:
        UsageError: everything that is wrong.
    """
    settings = config.settings
    registry = plugins.installed().registry.preferring(settings.plugins.prefer)
    problems: list[Problem] = []
    net = net_of(config, registry, meta_fallback(), problems)
    terms = terms_of(settings.loss, settings.data.input, registry, net, problems)
    problems += _data_problems(settings)
    traces = None
    if net is not None:
        try:
            traces = net.checked()
        except UsageError as error:
            problems += error.problems
    if net is None or traces is None or problems:
        raise UsageError(*problems)
    plan = Plan(settings, net, *traces, terms=terms)
    if plan.parameters > MOST_PARAMETERS:
        raise UsageError(f"the net has {plan.parameters:,} parameters; the most is {MOST_PARAMETERS:,}")
    return plan


def require_inputs(settings: Settings) -> None:
    """Refuse inputs that are not there, long before anything looks at them.

    Raises:
        DataError: a source is neither a folder, nor a file, nor built in.
        ModelError: there is no model to start from.
    """
    sources = {"data.source": settings.data.source, "data.validation": settings.data.validation}
    problems = []
    for where, source in sources.items():
        if isinstance(source, str) and source.startswith("builtin:") and source not in BUILTIN_SOURCES:
            problems.append(Problem(f"no built-in set '{source}'{did_you_mean(source, BUILTIN_SOURCES)}", where))
        elif isinstance(source, str) and not source.startswith("builtin:") and not Path(source).exists():
            problems.append(Problem(f"no such folder: {shown(source)}", where))
    if problems:
        raise DataError(*problems)
    start = settings.model.init
    if start is not None and not start.exists():
        raise ModelError(f"no such model: {shown(start)}", where="model.init")


def net_of(config: Config, registry: Registry, fallback: Fallback | None, problems: list[Problem]) -> Net | None:
    """The net that a config names; what is wrong is added to `problems`."""
    model = config.settings.model
    parts: list[Structure] = []
    for path in (model.encoder, model.decoder):
        try:
            parts.append(read_structure(path, registry, shown(path)))
        except UsageError as error:
            problems += error.problems
    if len(parts) < 2:
        return None
    try:
        return make_net(parts[0], model.bottleneck, parts[1], config.settings.data.input, registry, fallback)
    except UsageError as error:
        problems += error.problems
        return None


def _data_problems(settings: Settings) -> list[Problem]:
    data, problems = settings.data, []
    if len(data.input) != 3:
        problems.append(Problem("data.input: images are channels x height x width, as in '3x256x256'"))
    elif data.input[0] > 4:
        problems.append(
            Problem(f"data.input: images have 1 to 4 channels (grey, grey + alpha, RGB, RGBA), not {data.input[0]}")
        )
    elif data.resize == "none" and 0 < data.min_size < min(data.input[1:]):
        problems.append(
            Problem(
                f"data.min_size {data.min_size} is below the input, and data.resize = 'none' does not enlarge",
                hint="use resize = 'cover', or leave min_size out",
            )
        )
    return problems
