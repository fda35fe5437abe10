"""cuDNN's own answers for GPUs that are not here: real ones where its frontend is installed; and what is without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from learners import plan_for

from flexvae_cli.engine.memory import cudnn
from flexvae_cli.engine.memory.cudnn import Call, calls, cudnn_for, strides
from flexvae_cli.engine.memory.devices import GPUS, find_gpu
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.forecast import Question
from flexvae_cli.engine.memory.workspace import Libraries, convolution_workspace

MIB = 2**20
CONVOLUTION, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
PLAIN = Call(
    "fprop",
    (8, 128, 256, 256),
    (128, 128, 3, 3),
    (8, 128, 256, 256),
    torch.float32,
    False,
    True,
    (1, 1),
    (1, 1),
    (1, 1),
)
there = pytest.mark.skipif(cudnn_for("h100-80") is None, reason="takes nvidia-cudnn-frontend and torch's cuDNN")


@pytest.fixture
def anew() -> Iterator[None]:
    """What is remembered of the module that is installed is forgotten, before and behind."""
    cudnn_for.cache_clear()
    yield
    cudnn_for.cache_clear()


@there
@pytest.mark.parametrize(
    ("gpu", "dtype", "last", "tf32", "named"),
    [  # MiB of all three calls, in half a per cent or 3 MiB: other versions of cuDNN split sums otherwise
        ("h100-80", torch.float32, False, True, (512.6, 512.6, 513.7)),
        ("h100-80", torch.float32, True, True, (0, 0, 1.1)),
        ("h100-80", torch.float32, False, False, (0, 0, 0)),
        ("h100-80", torch.bfloat16, False, False, (256.3, 256.3, 257.4)),
        ("h100-80", torch.float16, True, False, (0, 0, 1.1)),
        ("a100-80", torch.float32, False, True, (256.6, 512.6, 517.6)),
        ("a100-40", torch.float32, True, True, (256.6, 256.6, 517.1)),
        ("4090", torch.float32, False, True, (256.6, 512.6, 519.9)),
        ("t4", torch.float32, False, False, (1.6, 1.6, 0)),
        ("t4", torch.float32, True, False, (514, 514, 0)),
    ],
)
def test_it_is_asked_without_the_gpu(gpu: str, dtype: torch.dtype, last: bool, tf32: bool, named: tuple) -> None:
    asked = cudnn_for(gpu)
    assert asked is not None
    call = replace(PLAIN, dtype=dtype, channels_last=last, tensor_cores=tf32)
    found = [asked.workspace(replace(call, operation=each)) for each in ("fprop", "dgrad", "wgrad")]
    assert [size / MIB for size in found] == pytest.approx(named, rel=0.005, abs=3)


@there
def test_what_cudnn_cannot_do_is_left_to_the_rule() -> None:
    asked, gpu = cudnn_for("t4"), find_gpu("t4")
    assert asked is not None
    assert asked.workspace(replace(PLAIN, dtype=torch.float64)) is None
    assert asked.workspace(replace(PLAIN, response=(8, 128, 7, 7))) is None  # no convolution gives that
    libraries = Libraries(gpu, asked)
    x, weight = (torch.empty(s, device="meta", dtype=torch.float64) for s in ((2, 8, 16, 16), (8, 8, 3, 3)))
    given = (x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    found = list(libraries(CONVOLUTION, given, x))
    assert libraries.ruled
    assert found[0].bytes == convolution_workspace(gpu, x, weight, x, channels_last=False, backward=False)


@there
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_kind_of_convolution_is_asked_for(dims: int, transposed: bool) -> None:
    libraries = Libraries(find_gpu("a100-80"), cudnn_for("a100-80"), tf32=True)
    x, weight = torch.empty(2, 16, *[8] * dims, device="meta"), torch.empty(16, 16, *[4] * dims, device="meta")
    how = ([2] * dims, [1] * dims, [1] * dims, transposed, [0] * dims, 1)
    out = CONVOLUTION(x, weight, None, *how)
    assert list(libraries(CONVOLUTION, (x, weight, None, *how), out))
    given = (torch.empty_like(out), x, weight, [16], *how, [True, True, False])
    assert list(libraries(BACKWARD, given, BACKWARD(*given)))
    assert not libraries.ruled


@there
def test_a_prediction_says_that_it_was_asked(tmp_path: Path) -> None:
    document = plan_for(tmp_path, data={"input": "3x32x32"}).settings.model_dump(mode="json", exclude_none=True)
    followed = Followed(Question(document, str(tmp_path / "c.toml"), find_gpu("h100-80"), 2, 2**30))
    assert (followed.grade, followed.margin) == ("B", 0.05)
    assert followed.workspaces.startswith("cuDNN 9.")
    known = cudnn_for("h100-80")
    assert known is not None
    before = len(known._known)
    Followed(followed.question).at(2)
    assert len(known._known) == before  # what was asked once is remembered


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("installed", [None, ModuleType("cudnn")])
def test_without_it_the_rule_is_taken(
    installed: ModuleType | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cudnn", installed)  # not there, or something else of that name
    assert cudnn_for("h100-80") is None
    document = plan_for(tmp_path, data={"input": "3x32x32"}).settings.model_dump(mode="json", exclude_none=True)
    followed = Followed(Question(document, str(tmp_path / "c.toml"), find_gpu("h100-80"), 2, 2**30))
    assert (followed.grade, followed.workspaces) == ("C", "rule")


def test_a_gpu_without_properties_is_not_asked_for() -> None:
    assert cudnn_for("h200") is None
    assert cudnn_for("NVIDIA H100 PCIe") is None  # has fewer multiprocessors


@there
def test_the_gpu_of_a_machine_is_known_by_the_name_that_cuda_gives_it() -> None:
    named, called = cudnn_for("h100-80"), cudnn_for("NVIDIA H100 80GB HBM3")
    assert named is not None
    assert called is not None
    assert called.workspace(PLAIN) == named.workspace(PLAIN)


@pytest.mark.parametrize("file", sorted(cudnn.PROPERTIES.glob("*.json")), ids=lambda file: file.stem)
def test_properties_are_those_of_the_gpu(file: Path) -> None:
    said, gpu = json.loads(file.read_text()), GPUS[file.stem]
    assert said["deviceVer"] == gpu.capability[0] * 100 + gpu.capability[1] * 10
    assert gpu.total <= said["totalGlobalMem"] <= 1.05 * gpu.total


def test_a_line_is_a_plane_of_height_one() -> None:
    x, weight, y = torch.empty(2, 3, 16), torch.empty(5, 3, 4), torch.empty(2, 5, 8)
    (call,) = calls(["fprop"], x, weight, y, ([2], [1], [1]), channels_last=False, tensor_cores=False)
    assert (call.image, call.kernel, call.response) == ((2, 3, 1, 16), (5, 3, 1, 4), (2, 5, 1, 8))
    assert (call.stride, call.padding, call.dilation) == ((1, 2), (0, 1), (1, 1))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6)])
def test_strides_are_those_of_torch(shape: tuple[int, ...]) -> None:
    last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    assert strides(shape, channels_last=False) == list(torch.empty(shape).stride())
    assert strides(shape, channels_last=True) == list(torch.empty(shape, memory_format=last).stride())


@there
@pytest.mark.parametrize("operation", ["fprop", "dgrad", "wgrad"])
def test_it_is_asked_past_the_class_in_python_and_answers_the_same(operation: cudnn.Operation) -> None:
    asked = cudnn_for("h100-80")
    assert asked is not None
    texts = (cudnn.PROPERTIES / "h100-80.json").read_text(encoding="utf-8")
    other = cudnn.Cudnn(asked._cudnn, texts)
    other._builder = asked._cudnn.pygraph
    for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
        call = replace(PLAIN, operation=operation, dtype=dtype, channels_last=last)
        assert asked.workspace(call) == other.workspace(call)


@there
def test_plans_to_fall_back_on_are_asked_for_where_there_are_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = cudnn_for("h100-80")
    assert asked is not None
    plans, modes = asked._graph, []

    def none_at_first(call: Call, mode: object) -> object:
        modes.append(mode)
        if mode == asked._cudnn.heur_mode.A:
            raise RuntimeError("no plan")
        return plans(call, mode)

    monkeypatch.setattr(asked, "_graph", none_at_first)
    assert asked._asked(PLAIN) is not None
    assert modes == [asked._cudnn.heur_mode.A, asked._cudnn.heur_mode.FALLBACK]
