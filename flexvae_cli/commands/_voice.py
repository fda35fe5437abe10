"""Several processes that train together, and the one voice that they speak with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from flexvae_cli import ui
from flexvae_cli.errors import Exit, FlexVAEError

if TYPE_CHECKING:
    from flexvae_cli.config.settings import TrainTable
    from flexvae_cli.engine.distributed import World
    from flexvae_cli.engine.events import Event
    from flexvae_cli.engine.place import Place


class Voice:
    """Whether this process is the one that speaks.

    Args:
        place: which process it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.world: World | None = None

    def meet(self, train: TrainTable) -> World | None:
        """Meet the other processes; without any there is no world, and torch is not imported yet.

        Raises:
            UsageError: there is no device for this process, or there are more processes than samples in a batch.
            LostError: the others cannot be reached.
        """
        if self.place.alone:
            return None
        from flexvae_cli.engine.place import require_parts

        require_parts(train.batch_size, train.accumulate, self.place)
        from flexvae_cli.engine.device import device_at, settle
        from flexvae_cli.engine.distributed import PATIENCE, join

        settle(train.allocator)
        device = device_at(train.device, self.place)
        self.world = join(self.place, device, PATIENCE + train.disk_full_wait)  # the first one may wait for room
        return self.world

    def may_tell(self) -> bool:
        """Whether this process tells of an error that ends it: the first to ask does, or before they met all of them
        that are the first on their machine, since what is wrong may be wrong there alone."""
        return self.place.local_rank == 0 if self.world is None else self.world.may_tell()


@contextmanager
def one_voice(place: Place) -> Iterator[Voice]:
    """Within, only the first process talks, and of errors that end several processes one tells; the exit codes stay."""
    voice = Voice(place)
    ui.output.quiet = ui.output.quiet or place.rank > 0
    try:
        yield voice
    except typer.Exit:
        raise
    except Exception as error:
        if voice.may_tell():
            raise
        raise typer.Exit(error.code if isinstance(error, FlexVAEError) else Exit.UNEXPECTED) from error


def follow_silently(events: Iterator[Event]) -> int:
    """Let training go on without a word; returns the signal that stopped it."""
    from flexvae_cli.engine.events import Finished

    return sum(event.signal for event in events if isinstance(event, Finished))
