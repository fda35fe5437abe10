"""GroupNorm and SiLU in Triton: by its interpreter what plain layers give, and code for GPUs not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing import norm_silu as fused
from flexvae_cli.engine.memory.semantics import CudaSemantics, on_meta

TRIALS = Path(__file__).with_name("triton_trials.py")
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-3}  # of gradients and output, which are rounded to the type
needs_triton = pytest.mark.skipif(fused.triton_kernels(torch.device("meta")) is None, reason="needs Triton")


def trials(*arguments: str, interpret: bool, cache: Path) -> list[dict[str, Any]]:
    """What a process of its own finds."""
    variables = {**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(TRIALS), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def hold(found: list[dict[str, Any]]) -> None:
    """Everything is as plain layers in fp64 have it, up to the rounding of the type."""
    for each in found:
        assert max(each["off"]) < TOLERANCE[each["type"]], each
        assert each["finite"], each
        assert each["types"], each
        assert each["lies_as_it_came"], each


@needs_triton
def test_it_is_the_plain_layers_over_random_shapes_types_and_layouts(tmp_path: Path) -> None:
    found = trials("random", "0", "10", interpret=True, cache=tmp_path)
    assert {each["type"] for each in found} == set(TOLERANCE)
    assert {each["layout"] for each in found} == {"contiguous", "last", "gaps", "turned"}
    assert {len(each["shape"]) for each in found} == {3, 4, 5}
    hold(found)


@needs_triton
@pytest.mark.skipif(os.environ.get("FLEXVAE_NIGHTLY") != "1", reason="takes minutes")
@pytest.mark.parametrize("first", range(10, 298, 48))
def test_it_is_the_plain_layers_over_many_shapes(tmp_path: Path, first: int) -> None:
    hold(trials("random", str(first), str(first + 48), interpret=True, cache=tmp_path))


@needs_triton
def test_elements_further_apart_than_32_bits_reach_are_found(tmp_path: Path) -> None:
    (found,) = trials("far", str(tmp_path), interpret=True, cache=tmp_path)
    assert max(found.values()) < 1e-6


@needs_triton
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    (found,) = trials("compiled", interpret=False, cache=tmp_path)
    assert len(found) == 10
    assert min(found.values()) > 0


def layer() -> tuple[nn.GroupNorm, torch.Tensor]:
    torch.manual_seed(0)
    return nn.GroupNorm(2, 4), torch.randn(2, 4, 3, 5)


def test_without_triton_a_gpu_takes_the_plain_function(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, x = layer()
    wanted = nn.functional.silu(norm(x))
    asked = []
    monkeypatch.setattr(rules, "on_gpu", lambda device: asked.append(device) or True)
    monkeypatch.setitem(sys.modules, "flexvae_cli.engine.fusing.norm_silu_triton", None)  # importing it fails
    monkeypatch.setattr(fused, "triton_kernels", fused.triton_kernels.__wrapped__)
    assert fused.triton_kernels(x.device) is None
    torch.testing.assert_close(fused.group_norm_silu(x, norm, wide=True), wanted)
    assert asked == [x.device]


@needs_triton
def test_where_no_kernel_can_be_made_a_gpu_takes_the_plain_function(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, x = layer()
    monkeypatch.setattr(rules, "on_gpu", lambda device: True)
    kernels = fused.triton_kernels(torch.device("meta"))
    assert kernels is not None
    assert not kernels.works(x.device)  # a CPU, for which there is no compiler
    torch.testing.assert_close(fused.group_norm_silu(x, norm, wide=True), nn.functional.silu(norm(x)))


@needs_triton
def test_where_memory_is_out_it_is_said_and_kernels_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("meta")
    kernels = fused.triton_kernels(device)
    assert kernels is not None

    def full(_: torch.device) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fused.triton_kernels.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "_one_group", full)
        with pytest.raises(torch.OutOfMemoryError):
            fused.triton_kernels(device)
    assert fused.triton_kernels(device) is kernels


@needs_triton
@pytest.mark.parametrize("last", [False, True])
def test_a_program_has_no_more_tiles_than_there_are(last: bool) -> None:
    kernels = fused.triton_kernels(torch.device("meta"))
    assert kernels is not None
    for space in [(1,), (2, 2), (5, 5), (16, 16), (64, 64)]:
        x = torch.empty(2, 64, *space, device="meta")
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
        cut = kernels.Cut.of(x, 32)
        assert 1 <= cut.steps <= -(-cut.positions // cut.block[1])
        assert (cut.steps == 1) == (cut.block[1] >= min(kernels.DEPTH, cut.positions))


@needs_triton
def test_kernels_leave_types_that_they_do_not_know() -> None:
    kernels = fused.triton_kernels(torch.device("meta"))
    assert kernels is not None
    norm, x = layer()
    assert kernels.takes(x, norm.weight, norm.bias)
    assert kernels.takes(x.half(), norm.weight, norm.bias)
    assert not kernels.takes(x.double(), norm.weight, norm.bias)
    assert not kernels.takes(x[:0], norm.weight, norm.bias)
    assert not kernels.takes(x[:, :, 0, 0], norm.weight, norm.bias)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dry_run_for_a_gpu_takes_what_the_kernels_take(dtype: torch.dtype) -> None:
    norm = nn.GroupNorm(2, 4, device="meta")
    x = torch.empty(2, 4, 3, 5, device="meta", dtype=dtype, requires_grad=True)
    with on_meta(CudaSemantics()):
        out = fused.norm_silu(norm, x, always=True)
        assert type(out.grad_fn).__name__ == "GroupNormSiluBackward"
        found = torch.autograd.grad(out.sum(), [x, norm.weight, norm.bias])
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert [each.shape for each in found] == [x.shape, (4,), (4,)]


def test_choosing_by_itself_a_gpu_stays_with_torchs_own_layers() -> None:
    x = torch.empty(1, 64, 8, 8, device="meta", requires_grad=True).to(memory_format=torch.channels_last)
    assert rules.norm_silu_pays(x, 32)
    with on_meta(CudaSemantics()):
        assert not rules.norm_silu_pays(x, 32)


def test_triton_is_imported_where_a_gpu_computes_and_nowhere_else() -> None:
    code = (
        "import sys, torch\nfrom torch import nn\nfrom flexvae_cli.engine.fusing import fuse\n"
        "net = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())\nfuse(net, 'on')\n"
        "net(torch.randn(1, 4, 5)).sum().backward()\n"
        "print([m for m in sys.modules if m.partition('.')[0] == 'triton'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
