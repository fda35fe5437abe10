"""Several processes that train one model together, each on a device of its own.

Small things that the hosts have to agree on (has a signal come? which images were bad?) go over gloo from host to host,
gradients over what suits the device. Every method is called by all processes at the same point of their work.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from flexvae_cli.engine.device import is_out_of_memory
from flexvae_cli.engine.gradients import MESSAGE, groups, sum_gradients
from flexvae_cli.engine.place import Place
from flexvae_cli.errors import ResourceError

FAREWELL = 10.0  # seconds that a process which ends in an error gives to closing its connections
PATIENCE = 600.0  # seconds that a process waits for the others; one that died is noticed at once


class LostError(ResourceError):
    """Another process of the run has ended, or does not answer."""


class World:
    """All processes of a run, seen from one of them; this class is a process that trains alone.

    Attributes:
        place: which one this is.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.place.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of `parameters` by their sums over all processes, see `gradients.sum_gradients`."""

    def sum_values(self, values: dict[str, Tensor], idle: bool = False) -> dict[str, Tensor]:  # noqa: ARG002
        """The sums over all processes of scalars on the device.

        Args:
            values: by name; the same names in every process that has any.
            idle: whether there may be processes without any; the first one always has them.
        """
        return values

    def greatest(self, *numbers: int) -> list[int]:
        """The greatest of each number over all processes."""
        return list(numbers)

    def from_each(self, value: Any) -> list[Any]:
        """What every process gave, in order of rank: JSON values, and numbers that are not finite."""
        return [value]

    def from_first(self, value: Any) -> Any:
        """What the first process gave: JSON values, and numbers that are not finite."""
        return value

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by those of the first process."""

    def mix(self, buffers: Iterable[Tensor]) -> None:
        """Replace floating-point buffers by their means over all processes, and others by those of the first one.

        A buffer that is the same everywhere stays exactly as it is.
        """

    def may_tell(self) -> bool:
        """Whether this process is the first to ask, and so the one that tells of an error."""
        return True

    def leave(self) -> None:
        """Wait until all are done; after that no process needs another one."""


class Together(World):
    """A process among several.

    Args:
        place: which one.
        device: where it computes; one device to a process.
        patience: seconds to wait for the others before they count as lost.

    Raises:
        LostError: they cannot be reached.
    """

    def __init__(self, place: Place, device: torch.device, patience: float = PATIENCE) -> None:
        import torch.distributed as dist
        import torch.distributed.nn.functional  # its defaults hold the group that there is at its import: none yet
        from torch.distributed.rendezvous import rendezvous

        super().__init__(place)
        self.device = device
        self._dist = dist
        limit = timedelta(seconds=patience)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _reaching_others():
            store, _, _ = next(rendezvous("env://", timeout=limit))
            self._store = dist.PrefixStore("flexvae", store)  # type: ignore[attr-defined]  # it is documented
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=limit)
        atexit.register(self._abandon)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        sum_gradients(parameters, self._start_sum)

    def sum_values(self, values: dict[str, Tensor], idle: bool = False) -> dict[str, Tensor]:
        names = self.from_first(list(values)) if idle else list(values)
        none = torch.zeros((), device=self.device)
        sums = torch.stack([values.get(name, none).to(none) for name in names])
        self._start_sum(sums)()
        return dict(zip(names, sums.unbind(), strict=True))

    def greatest(self, *numbers: int) -> list[int]:
        found = torch.tensor(numbers, dtype=torch.int64)
        with _reaching_others():
            self._dist.all_reduce(found, op=self._dist.ReduceOp.MAX)
        return list(map(int, found.tolist()))

    def from_each(self, value: Any) -> list[Any]:
        data = _bytes(value)
        (longest,) = self.greatest(len(data))
        padded = torch.cat([data, torch.full((longest - len(data),), ord(" "), dtype=torch.uint8)])
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with _reaching_others():
            self._dist.all_gather(found, padded)
        return [json.loads(bytes(each.tolist())) for each in found]

    def from_first(self, value: Any) -> Any:
        data = _bytes(value if self.first else None)
        (length,) = self.greatest(len(data) if self.first else 0)
        data = data if self.first else torch.empty(length, dtype=torch.uint8)
        self._broadcast(data)
        return json.loads(bytes(data.tolist()))

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            flat = tensor.reshape(-1).to(self.device, copy=True)
            self._broadcast(flat.view(torch.uint8))  # of any type, bit by bit
            tensor.copy_(flat.view(tensor.shape))

    @torch.no_grad()
    def mix(self, buffers: Iterable[Tensor]) -> None:
        for group in groups([buffer for buffer in buffers if buffer.numel()], MESSAGE):
            own = torch.cat([buffer.reshape(-1) for buffer in group])
            first = own.clone()
            self._broadcast(first.view(torch.uint8))
            if own.is_floating_point():
                apart = torch.where(own == first, 0, own - first)  # so that infinities that all have stay as well
                self._start_sum(apart)()
                first += apart / self.size
            for buffer, mean in zip(group, first.split([buffer.numel() for buffer in group]), strict=True):
                buffer.copy_(mean.view(buffer.shape))

    def may_tell(self) -> bool:
        try:
            return self._store.add("told", 1) == 1
        except RuntimeError:  # the store went with the process that held it
            return True

    def leave(self) -> None:
        """Wait until all are done, and then for gloo's threads to end, which takes that nothing else holds the group.

        A thread gives up the tensors of a sum after it has told of the sum. Where the interpreter has gone by then, it
        aborts the process (github.com/pytorch/pytorch/issues/190489).
        """
        with suppress(LostError):  # all is done: nobody is needed any more
            self.greatest(0)
        atexit.unregister(self._abandon)
        self._dist.destroy_process_group()

    def _abandon(self) -> None:
        """After an error, at the very end: see `leave`.

        Until then the others wait, so that what went wrong is told before torchrun ends whom it finds alive.
        """
        ending = Thread(target=self._dist.destroy_process_group, daemon=True)  # NCCL may wait for those that are gone
        ending.start()
        ending.join(FAREWELL)

    def _start_sum(self, flat: Tensor) -> Callable[[], None]:
        """Begin to replace a flat tensor by its sum over all processes; what this returns waits for the sum."""
        with _reaching_others():
            work = self._dist.all_reduce(flat, async_op=True)

        def wait() -> None:
            with _reaching_others():
                work.wait()

        return wait

    def _broadcast(self, flat: Tensor) -> None:
        with _reaching_others():
            self._dist.broadcast(flat, 0)


def join(place: Place, device: torch.device, patience: float = PATIENCE) -> World:
    """Meet the other processes of the run, if there are any.

    Raises:
        LostError: they cannot be reached.
    """
    return World(place) if place.alone else Together(place, device, patience)


@contextmanager
def _reaching_others() -> Iterator[None]:
    """Put into words what torch says when another process is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL raise nothing more particular
        if is_out_of_memory(error):
            raise
        raise LostError(
            "another process of this run has ended or does not answer",
            hint="its own message says why; --resume continues from the last checkpoint",
        ) from error


def _bytes(value: Any) -> Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
