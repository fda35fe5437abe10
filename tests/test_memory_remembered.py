"""What operations give without memory, remembered, and torch without its compiler: the same, and sooner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import plan_for
from torch import Tensor

from flexvae_cli.engine.memory import tracker as tracking
from flexvae_cli.engine.memory.dry import Ways, dry_step
from flexvae_cli.engine.memory.remembered import Remembered

ATEN = torch.ops.aten


class Counted:
    """An operation, and how often it was run."""

    def __init__(self, operation: Any) -> None:
        self.operation, self.runs = operation, 0
        self._schema, self.namespace = operation._schema, operation.namespace

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.operation(*args, **kwargs)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def told(out: Any) -> list[Any]:
    outs = out if isinstance(out, tuple) else (out,)
    return [None if each is None else (each.shape, each.stride(), each.dtype) for each in outs]


IMAGE = empty(2, 8, 6, 6).to(memory_format=torch.channels_last)
SAME: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "convolution": (
        ATEN.convolution.default,
        (IMAGE, empty(4, 8, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "gradients": (
        ATEN.convolution_backward.default,
        (
            empty(2, 4, 6, 6),
            IMAGE,
            empty(4, 8, 3, 3),
            [4],
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [False, True, True],
        ),
    ),
    "norm": (ATEN.native_group_norm.default, (IMAGE, empty(8), empty(8), 2, 8, 36, 4, 1e-5)),
    "length": (ATEN.linalg_vector_norm.default, (IMAGE, 2.0)),
    "several": (ATEN.cat.default, ([IMAGE, IMAGE], 1)),
}


@pytest.mark.parametrize("name", SAME)
def test_what_came_before_is_not_run_again_and_comes_out_the_same(name: str) -> None:
    operation, args = SAME[name]
    counted, remembered = Counted(operation), Remembered()
    first, again = (remembered(counted, args, {}) for _ in range(2))
    assert counted.runs == 1
    assert told(first) == told(again) == told(operation(*args))
    outs = [each for out in (first, again) for each in (out if isinstance(out, tuple) else (out,)) if each is not None]
    assert len({each.untyped_storage()._cdata for each in outs}) == len(outs)


def test_other_shapes_orders_types_and_numbers_are_run() -> None:
    counted, remembered = Counted(ATEN.mul.Tensor), Remembered()
    last = empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    images = (empty(2, 3, 4, 5), empty(2, 3, 5, 4), last, empty(2, 3, 4, 5, dtype=torch.bfloat16))
    for image in images:
        assert told(remembered(counted, (image, image), {})) == told(image * image)
    whole = empty(2, 3, dtype=torch.int64)
    for number in (1, 1.0, True):  # equal, and hashed alike
        assert remembered(counted, (whole, number), {}).dtype == (whole * number).dtype
    assert counted.runs == len(images) + 3


def test_what_shapes_do_not_tell_is_run_every_time() -> None:
    remembered, x, number = Remembered(), empty(3, 4), empty()
    never: list[tuple[Any, tuple[Any, ...]]] = [
        (ATEN.mul_.Tensor, (x, 2.0)),  # changes what it is given
        (ATEN.view.default, (x, [12])),  # gives what it was given
        (ATEN.split.Tensor, (x, 1)),
        (ATEN.add.Tensor, (number, x)),  # a single number: types may be chosen as if it were Python's
        (ATEN.native_dropout.default, (x, 0.5, False)),  # gives back what it should have copied
        (ATEN.ones_like.default, (torch.zeros(3),)),  # has memory
    ]
    for operation, args in never:
        counted = Counted(operation)
        for _ in range(2):
            remembered(counted, args, {})
        assert counted.runs == 2, operation


@pytest.mark.parametrize("cuda", [False, True])
def test_a_step_is_the_same_to_the_last_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    tables: dict[str, Any] = {"data": {"input": "3x32x32"}, "ema": {"decay": 0.9}, "loss": {"ssim_metrics": True}}
    if cuda:
        tables["train"] = {"precision": "bf16", "layout": "channels-last", "activation_checkpointing": "blocks"}
    plan = plan_for(tmp_path, **tables)
    before, then = (dry_step(plan, 3, Ways(cuda=cuda)) for _ in range(2))
    monkeypatch.setattr(tracking, "REMEMBERED", tracking._computed)
    anew = dry_step(plan, 3, Ways(cuda=cuda))
    assert before.blocks == then.blocks == anew.blocks
    assert before.peak == then.peak == anew.peak
    assert before.events[: before.peak.event] == anew.events[: anew.peak.event]


PROGRAM = """
import sys
import torch
from flexvae_cli.engine.memory.uncompiled import leave_compiler_out

leave_compiler_out()
for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, stepped = kind([weight], lr=0.5), []
    optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    (weight * weight).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert stepped and weight.grad is None and weight.requires_grad and weight.is_leaf and (weight < 1).all(), kind
x = torch.empty(2, 8, 4, 4, device="meta", requires_grad=True)
torch.nn.GroupNorm(4, 8, device="meta")(x).sum().backward()
assert x.grad.shape == x.shape
print("torch._dynamo" in sys.modules)
torch._dynamo  # it can still be had
print(torch.compile(torch.nn.ReLU(), backend="eager")(torch.tensor([-1.0, 2.0])).tolist())
"""


def test_what_compiles_nothing_loads_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False", "[0.0, 2.0]"]
