"""cuDNN's own answers: the workspace that it would take for a convolution, on a GPU that need not be here.

They take `nvidia-cudnn-frontend` (`pip install 'flexvae[mem]'`) and the cuDNN that torch brings along. What a GPU is
like cuDNN reads from `device_properties/`, a file for each, filled in from the properties that CUDA tells of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

PROPERTIES = Path(__file__).parent / "device_properties"
Operation = Literal["fprop", "dgrad", "wgrad"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of cuDNN: what it makes of what goes in, `(b, c, *space)`, of the kernel, and of what comes out.

    Attributes:
        operation: `fprop` makes what comes out, `dgrad` what goes in, `wgrad` the kernel.
        image, kernel, response: shapes.
        dtype: of all three; sums are in fp32.
        channels_last: the layout of all three.
        tensor_cores: whether fp32 may go through tf32.
        stride, padding, dilation: per axis.
    """

    operation: Operation
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    response: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    tensor_cores: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def calls(
    operations: Sequence[Operation],
    image: Tensor,
    kernel: Tensor,
    response: Tensor,
    how: tuple[list[int], list[int], list[int]],
    *,
    channels_last: bool,
    tensor_cores: bool,
) -> list[Call]:
    """The calls that torch makes of cuDNN for a convolution; one along a line is one in a plane of height 1."""
    line = image.dim() == 3
    shapes = [tuple(t.shape[:2]) + (1,) * line + tuple(t.shape[2:]) for t in (image, kernel, response)]
    stride, padding, dilation = ((first,) * line + tuple(axes) for first, axes in zip((1, 0, 1), how, strict=True))
    rest = (image.dtype, channels_last, tensor_cores, stride, padding, dilation)
    return [Call(operation, shapes[0], shapes[1], shapes[2], *rest) for operation in operations]


class Cudnn:
    """cuDNN, as it would be on a GPU.

    Args:
        module: `cudnn`, the frontend.
        properties: of the GPU, as JSON.
    """

    def __init__(self, module: Any, properties: str) -> None:
        self._cudnn = module
        self._device = module.create_device_properties(properties)
        self._types = {
            torch.float32: module.data_type.FLOAT,
            torch.bfloat16: module.data_type.BFLOAT16,
            torch.float16: module.data_type.HALF,
        }
        # what is behind the frontend's own class, in versions that have one in Python: it lists what nobody asks for
        self._builder = getattr(getattr(module, "_pybind_module", None), "backend_graph", module.pygraph)
        self._refusals = (RuntimeError, module.cudnnGraphNotSupportedError)
        self._known: dict[Call, int | None] = {}

    @property
    def version(self) -> str:
        """As in `9.24.0`."""
        number = self._cudnn.backend_version()
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def workspace(self, call: Call) -> int | None:
        """Bytes that the plan takes which torch takes: the first that can be built; None where there is none."""
        if call not in self._known:
            self._known[call] = self._asked(call)
        return self._known[call]

    def _asked(self, call: Call) -> int | None:
        if call.dtype not in self._types:
            return None
        modes = self._cudnn.heur_mode
        found = self._first(call, modes.A)
        return self._first(call, modes.FALLBACK) if found is None else found  # torch tries these behind the others

    def _first(self, call: Call, mode: Any) -> int | None:
        """Bytes of the first plan of a kind that can be built; None where there is none."""
        try:
            graph = self._graph(call, mode)
            for index in range(graph.get_execution_plan_count()):
                try:
                    graph.build_plan_at_index(index)
                except self._refusals:  # an engine that cannot; torch goes on to the next one as well
                    continue
                return int(graph.get_workspace_size_plan_at_index(index))
        except self._refusals:
            pass
        return None

    def _graph(self, call: Call, mode: Any) -> Any:
        """The graph of a call, with its plans of a kind, in the order in which torch tries them."""
        cudnn, kind = self._cudnn, self._types[call.dtype]
        wide = cudnn.data_type.FLOAT
        types = {"io_data_type": kind, "intermediate_data_type": wide, "compute_data_type": wide}
        graph = self._builder(**types, device_property=self._device)
        shapes = {"fprop": call.response, "dgrad": call.image, "wgrad": call.kernel}

        def tensor(name: str, shape: tuple[int, ...]) -> Any:
            return graph.tensor(name=name, dim=list(shape), stride=strides(shape, channels_last=call.channels_last))

        axes = {"stride": list(call.stride), "padding": list(call.padding), "dilation": list(call.dilation)}
        image, kernel, response = (
            lambda: tensor("image", call.image),
            lambda: tensor("kernel", call.kernel),
            lambda: tensor("response", call.response),
        )
        if call.operation == "fprop":
            made = graph.conv_fprop(image=image(), weight=kernel(), **axes)
        elif call.operation == "dgrad":
            made = graph.conv_dgrad(loss=response(), filter=kernel(), **axes)
        else:
            made = graph.conv_wgrad(image=image(), loss=response(), **axes)
        shape = shapes[call.operation]
        made.set_output(True).set_data_type(kind)
        made.set_dim(list(shape)).set_stride(strides(shape, channels_last=call.channels_last))
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([mode])
        graph.deselect_numeric_notes(self._refused_by_torch(call))
        return graph

    def _refused_by_torch(self, call: Call) -> list[Any]:
        """The arithmetic that torch does not take, as in its `Conv_v8.cpp`."""
        notes = self._cudnn.numerical_note
        exact = call.dtype == torch.float32 and not call.tensor_cores
        return [notes.DOWN_CONVERT_INPUTS, *([notes.TENSOR_CORE] if exact else [])]


def strides(shape: tuple[int, ...], *, channels_last: bool) -> list[int]:
    """Of a tensor (b, c, *space) in memory."""
    order = [0, *range(2, len(shape)), 1] if channels_last else list(range(len(shape)))
    found, step = [0] * len(shape), 1
    for axis in reversed(order):
        found[axis] = step
        step *= shape[axis]
    return found


@cache
def cudnn_for(gpu: str) -> Cudnn | None:
    """cuDNN as it would be on a GPU; None where the frontend, a cuDNN that can do so, or the GPU's file is missing.

    Args:
        gpu: its name in `devices.GPUS`, or CUDA's own.
    """
    texts = {file.stem: file.read_text(encoding="utf-8") for file in PROPERTIES.glob("*.json")}
    properties = next((t for name, t in texts.items() if gpu in (name, json.loads(t)["deviceName"])), None)
    if properties is None:
        return None
    try:
        return Cudnn(import_module("cudnn"), properties)
    except (ImportError, OSError, AttributeError, RuntimeError):  # another `cudnn`, or too old a one
        return None
