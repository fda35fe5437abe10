"""The bottlenecks and losses that come with the tool, registered as any plugin registers its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flexvae_cli.api import (
    CallbackSpec,
    LayerSpec,
    Observer,
    Rule,
    Shape,
    ShapeError,
    Spec,
    Step,
    bottleneck,
    callback,
    hookimpl,
    same,
)
from flexvae_cli.api.readers import ReaderSpec
from flexvae_cli.builtin_losses import LOSSES
from flexvae_cli.builtin_readers import READERS

if TYPE_CHECKING:
    from torch import nn

FLEXVAE_API = 1


def halves() -> Rule:
    """(2c, *space) -> (c, *space): the two halves are mean and log-variance."""

    def rule(shape: Shape) -> Step:
        if shape[0] % 2:
            raise ShapeError(f"takes an even number of channels (mean and log-variance), but {shape[0]} come in")
        step = same()(shape)
        return Step((shape[0] // 2, *shape[1:]), 0, 0, step.reach)

    return rule


@bottleneck("KL", trace=halves)
def kl() -> nn.Module:
    """Variational bottleneck: the channels' halves are mean and log-variance of a normal (arXiv:1312.6114).

    In training the latent is drawn from it, else it is the mean. The log-variance is clamped to [-30, 20].

    Examples:
        KL: 8x4x4 -> 4x4x4
    """
    from flexvae_cli.engine.bottlenecks.kl import KL

    return KL()


@bottleneck("None", trace=same)
def none() -> nn.Module:
    """No bottleneck: the latent is what the encoder gives, as in a plain autoencoder.

    Examples:
        None: 4x4x4 -> 4x4x4
    """
    from flexvae_cli.engine.bottlenecks.none import Plain

    return Plain()


@callback("csv")
def csv(separator: Literal["comma", "semicolon", "tab"] = "comma") -> Observer:
    """The logged numbers as a table that spreadsheets and pandas open: `metrics.csv` in the run's directory.

    A row for each line of `metrics.jsonl`, a column for each number; a number that turns up later gets a column behind
    the others. A resumed run goes on in the same table, behind the checkpoint.

    Args:
        separator: between two cells; spreadsheets in languages with a decimal comma expect semicolons.
    """
    from flexvae_cli.engine.callbacks.table import MetricsTable

    return MetricsTable({"comma": ",", "semicolon": ";", "tab": "\t"}[separator])


@hookimpl
def flexvae_bottlenecks() -> list[LayerSpec]:
    return [kl, none]


@hookimpl
def flexvae_losses() -> list[Spec]:
    return [*LOSSES]


@hookimpl
def flexvae_datasets() -> list[ReaderSpec]:
    return [*READERS]


@hookimpl
def flexvae_callbacks() -> list[CallbackSpec]:
    return [csv]
