"""Follows the storages of tensors through a computation: what is taken, what is freed, by which layer and operation.

Nothing has to be computed for it: tensors on torch's meta device have shapes and lifetimes, and no memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flexvae_cli.engine.memory.remembered import Remembered

Stage = Literal["build", "forward", "backward", "update"]


@dataclass(frozen=True, slots=True)
class Extra:
    """What an operation takes beside its outputs: bytes of a kind, and whether they stay once they are taken."""

    bytes: int
    kind: str = "workspace"
    stays: bool = False


Extras = Callable[[Any, tuple[Any, ...], Any], Iterable[Extra]]
"""What an operation takes beside its outputs, from the operation, its arguments and its outputs."""
REMEMBERED = Remembered()  # by the whole process: it follows from what goes in alone
LAYER = "flexvae.layer"  # in the metadata of a node of the autograd graph
_ATEN = torch.ops.aten
WIDE = {_ATEN.mse_loss.default, _ATEN.smooth_l1_loss.default, _ATEN.soft_margin_loss.default}
"""Real ones make their mean in the storage of all errors, and it stays as large; on meta it is one number."""


@dataclass(slots=True)
class Block:
    """One storage.

    Attributes:
        bytes: its size.
        layer: the entry that it was made in; empty outside of all.
        operation: what made it.
        stage: when.
        kind: what it is for, where that is known, as in `gradients`.
        kept: made in a forward pass and still there when the backward pass began.
    """

    bytes: int
    layer: str
    operation: str
    stage: Stage
    kind: str = ""
    kept: bool = False

    @property
    def category(self) -> str:
        return self.kind or ("activations" if self.kept else "temporaries")


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes that were held at once, and when: behind `event` events."""

    bytes: int = 0
    event: int = 0
    stage: Stage = "build"
    layer: str = ""
    operation: str = ""


class Tracker(TorchDispatchMode):
    """While it is entered, every new storage on a device is followed until it is freed.

    Args:
        device: the type of device whose tensors count.
        extras: what operations take beside their outputs.

    Attributes:
        blocks: all storages so far.
        events: `index` of a block that was taken, `~index` of one that was freed, in order.
        peak: when most bytes were held.
        stage: what is going on; backward passes are recognised.
        layers: the entries that are being run, the innermost last.
        apart: layers that were looked at apart, and stood in for.
        computed: those of them that took real passes.
    """

    def __init__(self, device: str = "meta", extras: Extras | None = None) -> None:
        super().__init__()
        self.device, self.extras = device, extras
        self._run = REMEMBERED if device == "meta" else _computed
        self.blocks: list[Block] = []
        self.events: list[int] = []
        self.peak = Peak()
        self.stage: Stage = "build"
        self.layers: list[str] = []
        self.apart: tuple[str, ...] = ()
        self.computed: tuple[str, ...] = ()
        self.live: dict[int, int] = {}  # storage -> index of its block
        self.held = 0  # bytes
        self._before: Stage = "build"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # what is looked at from here on is no part of what is followed
            return self._run_followed(func, args, kwargs or {})

    def _run_followed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stage, layer = self._now()
        if stage == "backward" and self._before != "backward":
            self._keep()
        self._before = stage
        if self.device == "meta" and func.name().startswith("aten::_fused_"):
            return None  # in place, and not all of them know meta tensors
        if stage == "update" and func is _ATEN._local_scalar_dense.default and args[0].is_meta:
            return 1.0  # an optimizer that looks at a number decides by it how far to go, not what to hold
        out = self._run(func, args, kwargs)
        for tensor in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                least = args[0].nbytes if func in WIDE and self.device == "meta" else 0
                self._see(tensor, layer, str(func), stage, least=least)
        for extra in self.extras(func, args, out) if self.extras else ():
            self._take(Block(extra.bytes, layer, str(func), stage, extra.kind))
            if not extra.stays:
                self._free(None, len(self.blocks) - 1)
        return out

    def _now(self) -> tuple[Stage, str]:
        """The stage, and the layer: of a backward pass, the one whose graph is being followed."""
        if torch._C._current_graph_task_id() < 0:
            return self.stage, self.layers[-1] if self.layers else ""
        node = torch._C._current_autograd_node()
        return "backward", "" if node is None else node.metadata.get(LAYER, "")  # type: ignore[attr-defined]

    def _keep(self) -> None:
        """A backward pass begins: what the forward pass left is kept for it."""
        for index in self.live.values():
            self.blocks[index].kept |= self.blocks[index].stage == "forward"

    def _see(self, tensor: Tensor, layer: str, operation: str, stage: Stage, kind: str = "", least: int = 0) -> None:
        if tensor.device.type != self.device or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.live or not storage.nbytes():
            return
        self.live[key] = len(self.blocks)
        self._take(Block(max(least, storage.nbytes()), layer, operation, stage, kind))
        weakref.finalize(storage, self._free, key, len(self.blocks) - 1)

    def _take(self, block: Block) -> None:
        self.events.append(len(self.blocks))
        self.blocks.append(block)
        self.held += block.bytes
        if self.held > self.peak.bytes:
            self.peak = Peak(self.held, len(self.events), block.stage, block.layer, block.operation)

    def _free(self, key: int | None, index: int) -> None:
        if key is not None:
            del self.live[key]
        self.events.append(~index)
        self.held -= self.blocks[index].bytes

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors that are there already, and say what they are for; known ones are only named."""
        for tensor in tensors:
            self._see(tensor, "", kind, self.stage, kind)
            index = self.live.get(tensor.untyped_storage()._cdata)
            if index is not None:
                self.blocks[index].kind = kind

    def held_at(self, event: int) -> list[Block]:
        """The blocks held behind so many events."""
        held: dict[int, None] = {}
        for index in self.events[:event]:
            if index >= 0:
                held[index] = None
            else:
                del held[~index]
        return [self.blocks[index] for index in held]


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def follow_layers(tracker: Tracker, entries: dict[str, torch.nn.Module]) -> None:
    """Let a tracker know which entry is being run, and whose graph a backward pass follows."""
    for name, module in entries.items():
        module.register_forward_pre_hook(lambda *_, name=name: tracker.layers.append(name))
        module.register_forward_hook(lambda _, __, out, name=name: _left(tracker, name, out))


def _left(tracker: Tracker, name: str, out: Any) -> None:
    tracker.layers.remove(name)
    nodes: list[Any] = [t.grad_fn for t in tree_leaves(out) if isinstance(t, Tensor)]
    while nodes:
        node = nodes.pop()
        if node is not None and LAYER not in node.metadata:
            node.metadata[LAYER] = name
            nodes += [following for following, _ in node.next_functions]
