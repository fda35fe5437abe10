"""An autoencoder as data: two structures and a bottleneck, checked and traced as one, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexvae_cli.api.trace import Shape, text
from flexvae_cli.codes import Bound
from flexvae_cli.errors import ModelError, Problem, UsageError
from flexvae_cli.registry import CORE, Registry
from flexvae_cli.structure import Leaf, Structure, bind_code, leaves, parse_structure
from flexvae_cli.tracing import Fallback, Trace, trace


@dataclass(frozen=True)
class Net:
    """Encoder, bottleneck and decoder for samples of one shape.

    Attributes:
        shape: a sample, (channels, *space); other sizes are padded to one that the net can take.
        distributions: distribution -> version of every plugin in use.
        prefer: name -> distribution, the preferences between these plugins that were in force.
        fallback: measures layers that have no static rule.
    """

    encoder: Structure
    bottleneck: Bound
    decoder: Structure
    shape: Shape
    distributions: dict[str, str]
    prefer: dict[str, str]
    fallback: Fallback | None = None

    def traces(self, shape: Shape, problems: list[Problem]) -> tuple[Trace, Trace, Trace]:
        """Encoder, bottleneck and decoder at `shape`, in one go."""
        middle = (Leaf("0", self.bottleneck, "model.bottleneck"),)
        encoder = trace(self.encoder.expanded(), shape, problems, self.fallback)
        if not encoder.complete:
            return encoder, trace((), encoder.gives, problems), trace((), encoder.gives, problems)
        bottleneck = trace(middle, encoder.gives, problems, self.fallback, encoder.reach, "from the encoder")
        if not bottleneck.complete:
            return encoder, bottleneck, trace((), bottleneck.gives, problems)
        origin = f"from the bottleneck {self.bottleneck.code}"
        decoder = trace(self.decoder.expanded(), bottleneck.gives, problems, self.fallback, bottleneck.reach, origin)
        return encoder, bottleneck, decoder

    def checked(self) -> tuple[Trace, Trace, Trace]:
        """The traces at the net's own shape.

        Raises:
            UsageError: parts do not fit, or the decoder does not give back what the encoder takes.
        """
        problems: list[Problem] = []
        parts = self.traces(self.shape, problems)
        if not problems and parts[2].complete and parts[2].gives != self.shape:
            gives = text(parts[2].gives)
            problems.append(
                Problem(f"the decoder gives {gives}, the encoder takes {text(self.shape)}", self.decoder.name)
            )
        if problems:
            raise UsageError(*problems)
        return parts

    @cached_property
    def latent_shape(self) -> Shape:
        """The latent of a sample of the net's own shape."""
        return self.traces(self.shape, [])[1].gives

    @property
    def codes(self) -> dict[str, str]:
        """The code of every layer by its name in the module: `encoder.0`, `bottleneck`."""
        sides = {"encoder": self.encoder, "decoder": self.decoder}
        codes = {f"{s}.{leaf.key}": leaf.bound.code for s, part in sides.items() for leaf in leaves(part.expanded())}
        return {**codes, "bottleneck": self.bottleneck.code}

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.traces(self.shape, []))

    def fitting(self, space: Shape) -> Shape:
        """The smallest size, from `space` up, that comes back from the decoder as large as it went in.

        Raises:
            UsageError: there is none within reach.
        """
        return tuple(self._fitting_axis(axis, size) for axis, size in enumerate(space))

    def _fitting_axis(self, axis: int, size: int) -> int:
        cache: dict[tuple[int, int], int] = self.__dict__.setdefault("_fitting_sizes", {})
        if (axis, size) not in cache:
            reduction = math.ceil(self.shape[axis + 1] / max(1, self.latent_shape[axis + 1]))
            for candidate in range(size, size + 8 * reduction + 64):
                shape = list(self.shape)
                shape[axis + 1] = candidate
                problems: list[Problem] = []
                decoder = self.traces(tuple(shape), problems)[2]
                same = decoder.gives[0] == shape[0] and decoder.gives[axis + 1] == candidate  # each axis by itself
                if same and not problems and decoder.complete:
                    cache[axis, size] = candidate
                    break
            else:
                raise UsageError(f"no size from {size} up comes back from this net as large as it went in")
        return cache[axis, size]

    def describe(self) -> dict[str, Any]:
        """What a model file says of the net; `from_description` is the way back."""
        return {
            "encoder": self.encoder.document,
            "bottleneck": self.bottleneck.code,
            "decoder": self.decoder.document,
            "input": list(self.shape),
            "plugins": self.distributions,
            "prefer": self.prefer,
        }


def make_net(
    encoder: Structure, bottleneck: str, decoder: Structure, shape: Shape, registry: Registry, fallback: Fallback | None
) -> Net:
    """Put the parts together.

    Raises:
        UsageError: the bottleneck's code is wrong.
    """
    problems: list[Problem] = []
    distributions = {**encoder.distributions, **decoder.distributions}
    bound = bind_code(bottleneck, "bottleneck", registry, "model.bottleneck", problems, distributions)
    if bound is None or problems:
        raise UsageError(*problems)
    prefer = {name: chosen for name, chosen in sorted(registry.prefer.items()) if chosen in distributions}
    return Net(encoder, bound, decoder, shape, dict(sorted(distributions.items())), prefer, fallback)


def from_description(
    description: dict[str, Any], registry: Registry, name: str, fallback: Fallback | None = None
) -> Net:
    """The net that a model file describes, its codes bound to the very plugins that it was made with.

    Args:
        description: what `Net.describe` wrote.
        registry: the installed specs.
        name: what messages call the model.
        fallback: measures layers that have no static rule.

    Raises:
        ModelError: the description is incomplete, a plugin that it records is not installed (with what to install), or
            the recorded plugins do not bring its codes.
    """
    try:
        shape = tuple(description["input"])
        if not (len(shape) > 1 and all(type(n) is int and n > 0 for n in shape)):
            raise ModelError(f"'input' is {shape}, not a shape", where=name)
        recorded = _recorded(description, registry, name)
        encoder = parse_structure(description["encoder"], recorded, f"{name}: encoder")
        decoder = parse_structure(description["decoder"], recorded, f"{name}: decoder")
        return make_net(encoder, description["bottleneck"], decoder, shape, recorded, fallback)
    except (KeyError, TypeError) as error:
        raise ModelError(f"the model's description lacks or garbles {error}", where=name) from None
    except UsageError as error:
        raise ModelError(*error.problems) from None


def _recorded(description: dict[str, Any], registry: Registry, name: str) -> Registry:
    """The specs of the plugins that the model was made with: what else is installed may use its codes otherwise."""
    distributions, prefer = description["plugins"], description.get("prefer", {})
    for table in (distributions, prefer):
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise ModelError("'plugins' or 'prefer' is not a table of names", where=name)
    absent = {n: version for n, version in distributions.items() if n not in {CORE, *registry.distributions}}
    if absent:
        raise ModelError(
            *(
                Problem(
                    f"the model was made with {n} {version}, which is not installed, or does not load",
                    where=name,
                    hint=f"pip install {n}; where it is installed, flexvae plugins says what is wrong",
                )
                for n, version in absent.items()
            )
        )
    return registry.only(distributions, prefer)
