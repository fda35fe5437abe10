"""The settings of a config file: one class per table, one line per key. `docs/config.md` is generated from it."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import BaseModel, Field

from flexvae_cli.config.settings.adversarial import AdversarialTable
from flexvae_cli.config.settings.callbacks import CallbackTable
from flexvae_cli.config.settings.data import DataTable
from flexvae_cli.config.settings.loss import LossChanges, LossTable, TermTable
from flexvae_cli.config.settings.model import ModelTable
from flexvae_cli.config.settings.optimizer import DiscriminatorOptimizerTable, GroupTable, OptimizerTable, ScheduleTable
from flexvae_cli.config.settings.train import EmaTable, PhaseTable, TrainTable
from flexvae_cli.config.settings.use import EncodeTable, InferTable, MemTable, PluginsTable
from flexvae_cli.config.settings.values import RelativePath, Table, parse_bytes, parse_shape

__all__ = [
    "AdversarialTable",
    "CallbackTable",
    "DataTable",
    "DiscriminatorOptimizerTable",
    "EmaTable",
    "EncodeTable",
    "GroupTable",
    "InferTable",
    "LossChanges",
    "LossTable",
    "MemTable",
    "ModelTable",
    "OptimizerTable",
    "PhaseTable",
    "PluginsTable",
    "RelativePath",
    "ScheduleTable",
    "Settings",
    "TermTable",
    "TrainTable",
    "parse_bytes",
    "parse_shape",
    "table_in",
]


class Settings(Table):
    """A whole config."""

    model: ModelTable
    data: DataTable
    loss: LossTable = LossTable()
    adversarial: AdversarialTable | None = None
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    ema: EmaTable = EmaTable()
    train: TrainTable
    phase: Annotated[tuple[PhaseTable, ...], Field(strict=False)] = ()
    callbacks: dict[str, CallbackTable] = Field({})
    infer: InferTable = InferTable()
    encode: EncodeTable = EncodeTable()
    mem: MemTable = MemTable()
    plugins: PluginsTable = PluginsTable()


def table_in(annotation: object) -> type[BaseModel] | None:
    """The class of the table, or of the tables in the list, that a key of this type holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((t for t in map(table_in, get_args(annotation)) if t), None)
