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
    ("batch", "channels", "outputs", "side", "kernel", "dims", "stride", "transposed"),
    [
        (6, 32, 16, 64, 3, 2, 1, False),
        (6, 24, 40, 16, 3, 2, 1, False),  # no whole blocks
        (6, 16, 3, 64, 3, 2, 1, False),
        (8, 3, 48, 64, 3, 2, 1, False),
        (2, 256, 256, 16, 3, 2, 1, False),  # more weights than pixels
        (6, 32, 16, 64, 1, 2, 1, False),
        (1, 8, 8, 16, 3, 2, 1, False),  # too small for the library
        (4, 16, 32, 256, 3, 1, 1, False),
        (6, 3, 64, 64, 4, 2, 4, False),  # an image to patches
        (6, 32, 64, 33, 3, 2, 2, False),
        (6, 32, 64, 128, 4, 1, 4, False),
        (6, 16, 3, 32, 4, 2, 2, True),  # an upsampling and the convolution to an image, as one
        (6, 24, 40, 16, 4, 2, 2, True),
        (2, 256, 128, 16, 4, 2, 2, True),
        (2, 64, 64, 16, 6, 2, 4, True),
        (6, 32, 16, 16, 3, 2, 1, True),
    ],
)
def test_copies_are_those_on_record(batch, channels, outputs, side, kernel, dims, stride, transposed, tmp_path):
    x = torch.randn(batch, channels, *[side] * dims)
    around = (channels, outputs) if transposed else (outputs, channels)
    weight, bias = torch.randn(*around, *[kernel] * dims), torch.randn(outputs)
    ones, zeros, steps = [1] * dims, [0] * dims, [stride] * dims
    padding = [kernel // 2 if stride == 1 else 1 if transposed else 0] * dims
    given: tuple[Any, ...] = (x, weight, bias, steps, padding, ones, transposed, zeros, 1)
    held, out = beside(lambda: FORWARD(*given), tmp_path)
    assert math.isclose(held, sum(each.bytes for each in copies(FORWARD, given, out)), rel_tol=0.01, abs_tol=1024)
    given = (torch.randn_like(out), x, weight, [outputs], steps, padding, ones, transposed, zeros, 1, [True] * 3)
    held, gradients = beside(lambda: BACKWARD(*given), tmp_path)
    assert math.isclose(
        held, sum(each.bytes for each in copies(BACKWARD, given, gradients)), rel_tol=0.05, abs_tol=1024
    )


@onednn
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("weight_too", [True, False])
def test_channels_side_by_side_are_read_as_they_are(weight_too, tmp_path):
    x = torch.randn(6, 128, 16, 16).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3)
    weight = weight.to(memory_format=torch.channels_last) if weight_too else weight
    given = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    held, out = beside(lambda: FORWARD(*given), tmp_path)
    counted = sum(each.bytes for each in copies(FORWARD, given, out))
    assert counted == weight.nbytes * (1 if weight_too else 2)  # which lies otherwise
    assert math.isclose(held, counted, rel_tol=0.02)


@onednn
@pytest.mark.usefixtures("one_thread")
def test_what_lies_otherwise_is_copied_before(tmp_path):
    x, weight = torch.randn(6, 64, 32, 32), torch.randn(64, 64, 3, 3).transpose(0, 1)
    given = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    held, out = beside(lambda: FORWARD(*given), tmp_path)
    assert math.isclose(held, sum(each.bytes for each in copies(FORWARD, given, out)), rel_tol=0.01)


def test_what_is_no_convolution_copies_nothing():
    x = torch.randn(6, 32, 16, 16)
    assert not list(copies(torch.ops.aten.relu.default, (x,), x))
