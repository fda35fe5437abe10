"""What changes in the course of a run: `[[phase]]`, with the loss, the frozen parts and the shapes of the samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flexvae_cli.api.trace import Shape
from flexvae_cli.buckets import buckets_like, buckets_of
from flexvae_cli.config.settings import LossTable, Settings
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.net import Net
from flexvae_cli.objective import Term, terms_of
from flexvae_cli.registry import Registry
from flexvae_cli.samples import MOST_AXES


@dataclass(frozen=True)
class Phase:
    """What holds from a step on.

    Attributes:
        start: the first step.
        terms: the loss, term by term; the first is the reconstruction.
        freeze: patterns of parameters that are not trained.
        shape: a training sample, (c, *space).
        where: what messages call it.
        buckets: further shapes, of samples of other aspect ratios; as many in every phase.
    """

    start: int
    terms: tuple[Term, ...]
    freeze: tuple[str, ...]
    shape: Shape
    where: str
    buckets: tuple[Shape, ...] = ()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of training samples, bucket by bucket."""
        return (self.shape, *self.buckets)


def phases_of(settings: Settings, registry: Registry, net: Net | None, problems: list[Problem]) -> tuple[Phase, ...]:
    """The start of the run and `[[phase]]`, each with what the ones before it left as it was."""
    loss, buckets = settings.loss, _buckets(settings, net, problems)
    terms = _terms_at(loss, buckets, registry, net, problems)
    phases = [Phase(0, terms, settings.train.freeze, buckets[0], "train", buckets[1:])]
    found = dict[Problem, None]()  # said of a phase before
    for number, table in enumerate(settings.phase):
        last, where = phases[-1], f"phase[{number}]"
        if table.start <= last.start:
            problems.append(Problem(f"starts at step {table.start}, not behind the one before it", f"{where}.start"))
        if settings.train.max_steps is not None and table.start >= settings.train.max_steps:
            problems.append(Problem(f"starts at step {table.start}, behind train.max_steps", f"{where}.start"))
        loss = loss.model_copy(update={key: getattr(table.loss, key) for key in table.loss.model_fields_set})
        shape, before = table.input or last.shape, len(problems)
        wrong = _shape_problems(shape, settings, net, where) if table.input else []
        shapes = last.shapes if not table.input else (shape,) if wrong else _like(buckets, net, shape, settings, wrong)
        terms = _terms_at(loss, shapes, registry, net, problems)
        if settings.data.validation and shape != settings.data.input:  # where validation measures them
            terms_of(loss, settings.data.input, registry, net, problems)
        if phases[0].terms and terms and output_of(terms) != output_of(phases[0].terms):
            problems.append(Problem("a run stays with bce, or without", f"{where}.loss.reconstruction"))
        fresh = dict.fromkeys(p for p in problems[before:] if p not in problems[:before] and p not in found)
        found |= fresh
        problems[before:] = [replace(problem, where=f"{where}.{problem.where}") for problem in fresh]
        problems += wrong
        frozen = last.freeze if table.freeze is None else table.freeze
        phases.append(Phase(table.start, terms, frozen, shape, where, shapes[1:]))
    return tuple(phases)


def _buckets(settings: Settings, net: Net | None, problems: list[Problem]) -> tuple[Shape, ...]:
    """The shapes of a training sample; the first is `data.input`."""
    shape, most = settings.data.input, settings.data.max_aspect_ratio
    if most == 1 or net is None or len(shape) != MOST_AXES:
        return (shape,)
    try:
        net.checked()  # what is wrong with it is told elsewhere
    except UsageError:
        return (shape,)
    try:
        return buckets_of(net, shape, most)
    except UsageError as error:
        problems += error.problems
        return (shape,)


def _like(
    buckets: tuple[Shape, ...], net: Net | None, shape: Shape, settings: Settings, problems: list[Problem]
) -> tuple[Shape, ...]:
    """The shapes of a phase with an input of its own."""
    if net is None or len(buckets) == 1:
        return (shape,)
    try:
        return buckets_like(buckets, net, shape, settings.data.max_aspect_ratio)
    except UsageError as error:
        problems += error.problems
        return (shape,)


def _terms_at(
    loss: LossTable, shapes: tuple[Shape, ...], registry: Registry, net: Net | None, problems: list[Problem]
) -> tuple[Term, ...]:
    """The loss at the first of some shapes; none may have no meaning for any of them."""
    terms = terms_of(loss, shapes[0], registry, net, problems)
    for shape in shapes[1:]:
        more = list[Problem]()
        terms_of(loss, shape, registry, net, more)
        problems += [problem for problem in more if problem not in problems]
    return terms


def output_of(terms: tuple[Term, ...]) -> str:
    return "logits" if terms[0].bound.spec.name == "bce" else "samples"


def _shape_problems(shape: tuple[int, ...], settings: Settings, net: Net | None, where: str) -> list[Problem]:
    """What is wrong with the input of a phase."""
    wanted = settings.data.input
    if len(shape) != len(wanted) or shape[0] != wanted[0]:
        like = f"{wanted[0]} channels and {len(wanted) - 1} sizes"
        return [Problem(f"wants {like}, as data.input has", f"{where}.input")]
    try:
        if net is not None:
            replace(net, shape=shape).checked()
    except UsageError as error:
        return [replace(problem, what=f"{problem.what} (at {where}.input)") for problem in error.problems]
    return []
