"""The static rules of layers, called with care: a rule is a stranger's code, and its faults are told as its own."""

from __future__ import annotations

from flexvae_cli.api.mirror import Mirrored, Original, Part
from flexvae_cli.api.spec import LayerSpec, Spec
from flexvae_cli.api.trace import Reach, Rule, Shape, Step
from flexvae_cli.codes import Bound


class RuleError(Exception):
    """A static rule itself is broken, whatever the user wrote; the text names its code and plugin."""


def rule_of(bound: Bound) -> Rule | None:
    """The static rule of a code, or None where its spec has none.

    Raises:
        ValueError: the code's values do not go together.
        RuleError: anything else goes wrong.
    """
    spec = bound.spec
    if not isinstance(spec, LayerSpec) or spec.trace is None:
        return None
    try:
        rule = spec.rule(bound.values)
    except ValueError:
        raise
    except Exception as error:
        raise _fault(spec, _told(error)) from error
    if not callable(rule):
        raise _fault(spec, f"it makes a {type(rule).__name__}, not a rule")
    return rule


def traced(bound: Bound, shape: Shape) -> Step | None:
    """What a code's static rule says at an input (channels, *space), or None where its spec has none.

    Raises:
        ShapeError, ValueError: the input does not fit the layer, or its values do not go together.
        RuleError: anything else goes wrong.
    """
    rule = rule_of(bound)
    if rule is None:
        return None
    try:
        step = rule(shape)
    except ValueError:
        raise
    except Exception as error:
        raise _fault(bound.spec, _told(error)) from error
    if not isinstance(step, Step):
        raise _fault(bound.spec, f"it gives a {type(step).__name__}, not a Step")
    if not _is_sound(step, shape):
        raise _fault(bound.spec, f"it gives {step}")
    return step


def mirrored(bound: Bound, original: Original) -> Mirrored | None:
    """What a code's mirror rule puts in the decoder, or None where its spec has none.

    Raises:
        ValueError: nothing fits; the text says what to write by hand.
        RuleError: anything else goes wrong.
    """
    spec = bound.spec
    if not isinstance(spec, LayerSpec) or spec.mirror is None:
        return None
    try:
        made = spec.mirror(original)
    except ValueError:
        raise
    except Exception as error:
        raise _fault(spec, _told(error), "mirror") from error
    if not isinstance(made, Mirrored) or not all(isinstance(part, Part) for part in made.parts):
        raise _fault(spec, f"it gives {made!r:.80}, not what Mirrored holds", "mirror")
    return made


def _is_sound(step: Step, shape: Shape) -> bool:
    """Whether all of a step has the right type, and as many axes as the shape."""
    return (
        isinstance(step.shape, tuple)
        and len(step.shape) == len(shape)
        and all(isinstance(n, int) for n in (*step.shape, step.parameters, step.macs))
        and isinstance(step.reach, Reach)
        and len(step.reach.stride) == len(step.reach.low) == len(step.reach.high) == len(shape) - 1
        and isinstance(step.notes, tuple)
    )


def _told(error: Exception) -> str:
    from flexvae_cli.faults import fault

    return fault(error)


def _fault(spec: Spec, what: str, kind: str = "trace") -> RuleError:
    from flexvae_cli.plugins import installed

    origin = installed().origin(spec) or spec.factory.__module__
    return RuleError(f"the {kind} rule of {spec.name} ({origin}) fails: {what}")
