"""The objective of training, from `[loss]`: which terms, with which weights, from which step on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from flexvae_cli.api import LossSpec
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.builtin_losses import kld, quantizers
from flexvae_cli.codes import Bound
from flexvae_cli.config.settings import LossTable, TermTable
from flexvae_cli.errors import Problem
from flexvae_cli.kl_options import kl_problems
from flexvae_cli.net import Net
from flexvae_cli.parameters import bind_values
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.structure import Item, Leaf, bind_code

LOSSES_OF_OTHER_KEYS = {"kld": "loss.kld_weight", "ssim": "loss.ssim_metrics", "sparse": "loss.sparse_metrics"}
RESERVED = frozenset(
    {
        "adversarial",
        "bottleneck",
        "discriminator",
        "kld",
        "lecam",
        "loss",
        "lr",
        "psnr",
        "r1",
        "rate",
        "reconstruction",
        "scale",
        "skipped",
    }
)
"""Names of other numbers of the log: a `[[loss.term]]` whose loss is called so gets a number behind it."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """The factor on a weight over the steps, counted from 0: nothing before `start`, then a linear rise to 1.

    Attributes:
        start: the first step that counts.
        warmup: steps of the rise; the first of them has 1 / warmup already, as with a learning rate.
        cycle: steps after which it begins anew; 0 where it does not.
    """

    start: int = 0
    warmup: int = 0
    cycle: int = 0

    def at(self, step: int) -> float:
        """The factor, in [0, 1]."""
        if step < self.start:
            return 0.0
        position = (step - self.start) % self.cycle if self.cycle else step - self.start
        return min(1.0, (position + 1) / self.warmup) if self.warmup else 1.0

    def __str__(self) -> str:
        parts = [f"from step {self.start} on"] if self.start else []
        parts += [f"rises over {self.warmup} steps"] if self.warmup else []
        parts += [f"anew every {self.cycle} steps"] if self.cycle else []
        return ", ".join(parts) or "constant"


@dataclass(frozen=True)
class Term:
    """One term of the total loss: its weight times its value.

    Attributes:
        name: in the log.
        weight: once the ramp is through.
        ramp: the factor on the weight at each step.
        target: of the KL divergence, the rate in nats per latent element that a controller holds by moving the weight,
            which then is only where it begins.
    """

    name: str
    bound: Bound
    weight: float
    ramp: Ramp = field(default=Ramp())
    target: float | None = None

    def counts_at(self, step: int) -> bool:
        """Whether it is computed at all; a term of weight 0 is, for the log."""
        return step >= self.ramp.start

    def weight_at(self, step: int) -> float:
        """Its weight at a step, counted from 0; not known here where a controller moves it."""
        return self.weight * self.ramp.at(step)


def terms_of(
    loss: LossTable,
    shape: Shape,
    registry: Registry,
    net: Net | None,
    problems: list[Problem],
    where: str = "loss",
) -> tuple[Term, ...]:
    """The seed's formula and `[[loss.term]]`.

    alpha * reconstruction + kld_weight * KLD + ssim * beta * (1 - SSIM) + sparse + quantizer_weight * quantizers + ...

    Args:
        loss: the table.
        shape: of a training sample, (c, *space).
        net: the autoencoder; None where it could not be read.
        problems: what is wrong is added to them.
        where: what messages call the table.

    Returns:
        The reconstruction first; names are distinct.
    """
    reader = _Reader(shape, registry, problems, where)
    reader.reconstruction(loss)
    no_posterior = "" if net is None or net.bottleneck.spec.name == "KL" else net.bottleneck.code
    problems += kl_problems(loss, where, no_posterior)
    if not no_posterior:
        reader.divergence(loss)
    if loss.ssim_metrics:
        reader.code("ssim", "ssim", loss.beta, "ssim_metrics")
    if loss.sparse_metrics:
        reader.code("sparse", "sparse", 1.0, "sparse_metrics")
    if net is not None and _quantizes(net):
        reader.add(Term("bottleneck", Bound(quantizers, {}), loss.quantizer_weight), "quantizer_weight")
    elif net is not None and loss.quantizer_weight != 1.0:
        reader.wrong("has no effect: this net has no quantizers", "quantizer_weight")
    for index, table in enumerate(loss.term):
        reader.term(table, f"term[{index}]")
    return tuple(reader.terms)


def _quantizes(net: Net) -> bool:
    """Whether the net may have a loss of its own; of a plugin's bottleneck that is not known before it runs."""
    if net.bottleneck.spec.name not in ("KL", "None"):
        return True
    leaves = _leaves((*net.encoder.expanded(), *net.decoder.expanded()))
    return any(getattr(leaf.bound.spec, "quantizes", False) for leaf in leaves)


def _leaves(items: tuple[Item, ...]) -> Iterator[Leaf]:
    for item in items:
        if isinstance(item, Leaf):
            yield item
        else:
            yield from _leaves((*item.body, *item.shortcut))


class _Reader:
    """Collects terms and problems while it goes through a table."""

    def __init__(self, shape: Shape, registry: Registry, problems: list[Problem], where: str) -> None:
        self.shape, self.registry, self.problems, self.where = shape, registry, problems, where
        self.terms: list[Term] = []

    def wrong(self, what: str, key: str, hint: str = "") -> None:
        self.problems.append(Problem(what, f"{self.where}.{key}", hint=hint))

    def add(self, term: Term, key: str) -> None:
        """A term, under a name of its own; its loss may refuse the samples."""
        spec, name, number = term.bound.spec, term.name, 2
        while name in {other.name for other in self.terms}:
            name, number = f"{term.name}-{number}", number + 1
        self.terms.append(replace(term, name=name))
        if not isinstance(spec, LossSpec):
            return
        try:
            spec.require(self.shape, term.bound.values)
        except ValueError as error:
            self.wrong(f"{spec.name} {error}; the input is {text(self.shape)}", key)
        except Exception as error:  # a stranger's code
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            self.wrong(f"the check of samples of {spec.name} fails: {told}", key)

    def code(self, name: str, code: str, weight: float, key: str) -> None:
        bound = bind_code(code, "loss", self.registry, f"{self.where}.{key}", self.problems, {})
        if bound is not None:
            self.add(Term(name, bound, weight), key)

    def reconstruction(self, loss: LossTable) -> None:
        self.code("reconstruction", loss.reconstruction, loss.alpha, "reconstruction")
        name = loss.reconstruction.partition("_")[0]
        if (other := LOSSES_OF_OTHER_KEYS.get(name)) is not None:
            self.wrong(f"'{loss.reconstruction}' does not compare samples; it has {other}", "reconstruction")

    def divergence(self, loss: LossTable) -> None:
        bound = bind_values(kld, {"free_bits": loss.free_bits}, self.where, self.problems)
        if bound is None:
            return
        ramp = Ramp()
        if loss.kld_schedule != "constant":
            ramp = Ramp(warmup=loss.kld_warmup_steps, cycle=loss.kld_cycle_steps)
        self.add(Term("kld", bound, loss.kld_weight, ramp, loss.kld_target), "kld_weight")

    def file(self, path: Path, key: str) -> None:
        """What can be told of a file of weights without opening it."""
        if not path.is_file():
            self.wrong(f"no such file: {shown(path)}", key)
        elif path.suffix != ".safetensors":
            hint = "flexvae import-pt turns .pth files into one"
            self.wrong(f"wants a safetensors file, not {shown(path)}", key, hint)

    def term(self, table: TermTable, key: str) -> None:
        """An entry of `[[loss.term]]`."""
        found = self.registry.find("loss", table.name)
        if not isinstance(found, Registered):
            return self.wrong(found.what, f"{key}.name", found.hint)
        if table.name == "kld":
            return self.wrong("kld has keys of its own: loss.kld_weight and those behind it", f"{key}.name")
        if table.name == "bce" and self.terms and self.terms[0].bound.spec.name != "bce":
            return self.wrong(
                "bce takes logits, which the decoder gives where loss.reconstruction is bce", f"{key}.name"
            )
        values = dict(table.model_extra or {})
        if table.weights is not None:
            values["weights"] = str(table.weights)
            if found.spec.param("weights") is not None:
                self.file(table.weights, f"{key}.weights")
        bound = bind_values(found.spec, values, f"{self.where}.{key}", self.problems)
        if bound is not None:
            name = f"{table.name}-2" if table.name in RESERVED else table.name
            self.add(Term(name, bound, table.weight, Ramp(table.start, table.warmup)), key)
        return None
