"""The copies that a CPU's convolutions make, against the record of torch's allocator."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from flexvae_cli.engine.memory.copies import copies

FORWARD, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
onednn = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="read from the record of a CPU with AVX-512"
)


def beside(compute: Callable[[], Any], folder: Path) -> tuple[int, Any]:
    """The most bytes that were held beside what is returned, and what is returned."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        found = compute()
    record.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    recorded = [event["args"] for event in events if event["name"] == "[memory]"]
    before = recorded[0]["Total Allocated"] - recorded[0]["Bytes"]
    outputs = [found] if isinstance(found, torch.Tensor) else [each for each in found if each is not None]
    return max(each["Total Allocated"] for each in recorded) - before - sum(each.nbytes for each in outputs), found


@pytest.fixture
def one_thread():
    """Several add up gradients of weights apart, in small room of their own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@onednn
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "side", "kernel", "dims"),
    [
        (6, 32, 16, 64, 3, 2),
        (6, 24, 40, 16, 3, 2),  # no whole blocks
        (6, 16, 3, 64, 3, 2),
        (8, 3, 48, 64, 3, 2),
        (2, 256, 256, 16, 3, 2),  # more weights than pixels
        (6, 32, 16, 64, 1, 2),
        (1, 8, 8, 16, 3, 2),  # too small for the library
        (4, 16, 32, 256, 3, 1),
    ],
)
def test_copies_are_those_on_record(batch, channels, outputs, side, kernel, dims, tmp_path):
    x = torch.randn(batch, channels, *[side] * dims)
    weight, bias = torch.randn(outputs, channels, *[kernel] * dims), torch.randn(outputs)
    ones, zeros, padding = [1] * dims, [0] * dims, [kernel // 2] * dims
    given: tuple[Any, ...] = (x, weight, bias, ones, padding, ones, False, zeros, 1)
    held, out = beside(lambda: FORWARD(*given), tmp_path)
    assert math.isclose(held, sum(each.bytes for each in copies(FORWARD, given, out)), rel_tol=0.01, abs_tol=1024)
    given = (torch.randn_like(out), x, weight, [outputs], ones, padding, ones, False, zeros, 1, [True] * 3)
    held, gradients = beside(lambda: BACKWARD(*given), tmp_path)
    assert math.isclose(
        held, sum(each.bytes for each in copies(BACKWARD, given, gradients)), rel_tol=0.05, abs_tol=1024
    )


def test_channels_side_by_side_are_read_as_they_are():
    x = torch.randn(6, 32, 16, 16).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 32, 3, 3)
    given = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert sum(each.bytes for each in copies(FORWARD, given, FORWARD(*given))) == weight.nbytes
    assert not list(copies(torch.ops.aten.relu.default, (x,), x))
