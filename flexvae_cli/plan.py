"""A config made into a plan: all that training needs is read, bound, traced and checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flexvae_cli import plugins
from flexvae_cli.adversary import AdversaryPlan, adversary_of
from flexvae_cli.assets import BUILTIN_SOURCES
from flexvae_cli.callbacks import callbacks_of
from flexvae_cli.codes import Bound
from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.errors import DataError, ModelError, Problem, UsageError, did_you_mean
from flexvae_cli.fallback import meta_fallback
from flexvae_cli.net import Net, make_net
from flexvae_cli.objective import Term
from flexvae_cli.paths import shown
from flexvae_cli.phases import Phase, output_of, phases_of
from flexvae_cli.registry import Registry
from flexvae_cli.samples import data_problems
from flexvae_cli.structure import Structure, read_structure
from flexvae_cli.tracing import Fallback, Trace

MOST_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        net: the autoencoder.
        encoder, bottleneck, decoder: its traces at the shape of `data.input`.
        phases: what changes in the course of the run; the first starts at step 0.
        adversary: the discriminator, where training is adversarial.
        callbacks: who else is shown what happens.
    """

    settings: Settings
    net: Net
    encoder: Trace
    bottleneck: Trace
    decoder: Trace
    phases: tuple[Phase, ...]
    adversary: AdversaryPlan | None = None
    callbacks: tuple[Bound, ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """The loss at the start of the run."""
        return self.phases[0].terms

    def phase_at(self, step: int) -> Phase:
        """What holds at a step."""
        return next(phase for phase in reversed(self.phases) if phase.start <= step)

    @property
    def parameters(self) -> int:
        return self.encoder.parameters + self.bottleneck.parameters + self.decoder.parameters

    @property
    def output(self) -> str:
        """What the decoder gives: `samples` in [-1, 1], or `logits`."""
        return output_of(self.terms)


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
    phases = phases_of(settings, registry, net, problems)
    shapes = [shape for phase in phases for shape in phase.shapes if len(shape) == len(settings.data.input)]
    adversary = adversary_of(settings.adversarial, shapes, registry, meta_fallback(), problems)
    problems += data_problems(settings.data, registry) + _run_problems(settings)
    callbacks = callbacks_of(settings.callbacks, registry, problems)
    traces = None
    if net is not None:
        try:
            traces = net.checked()
        except UsageError as error:
            problems += error.problems
    if net is None or traces is None or problems:
        raise UsageError(*problems)
    plan = Plan(settings, net, *traces, phases=phases, adversary=adversary, callbacks=callbacks)
    sizes = {"net": plan.parameters, "discriminator": adversary.parameters if adversary else 0}
    too_large = [(what, count) for what, count in sizes.items() if count > MOST_PARAMETERS]
    if too_large:
        raise UsageError(
            *(f"the {what} has {count:,} parameters; the most is {MOST_PARAMETERS:,}" for what, count in too_large)
        )
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


def _run_problems(settings: Settings) -> list[Problem]:
    """Settings that would have no effect."""
    problems, train, adversarial = [], settings.train, settings.adversarial
    if settings.data.validation == 0:
        if settings.schedule.name == "plateau":
            problems.append(Problem("looks at validations, and data.validation is 0", "schedule.name"))
        if train.keep_best != "off":
            problems.append(Problem("needs validations, and data.validation is 0", "train.keep_best"))
    if adversarial is not None and train.max_steps is not None and adversarial.start >= train.max_steps:
        problems.append(Problem(f"is behind the {train.max_steps} steps of the run", "adversarial.start"))
    return problems
