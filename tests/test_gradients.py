"""Gradients summed over processes; the processes themselves are in `test_distributed.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flexvae_cli.engine.gradients import groups, sum_gradients


class Twin:
    """Stands for two processes with the same gradients: every sum is twice what this one has."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.under_way = self.most_under_way = 0

    def __call__(self, flat: Tensor):
        self.sizes.append(flat.nbytes)
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)

        def wait() -> None:
            self.under_way -= 1
            flat.mul_(2)

        return wait


def parameters() -> list[nn.Parameter]:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(5, 7).double(), nn.Linear(2, 2))
    net[0].to(memory_format=torch.channels_last)
    found = list(net.parameters())
    for index, parameter in enumerate(found):
        parameter.grad = torch.randn_like(parameter, memory_format=torch.preserve_format) + index
    return found


@pytest.mark.parametrize("message", [1, 40, 200, 1 << 20])
def test_messages_of_any_size_sum_the_same(message):
    torch.manual_seed(0)
    several = parameters()
    before = [p.grad.clone() for p in several]
    strides = [p.grad.stride() for p in several]
    twin = Twin()
    sum_gradients(several, twin, message)
    assert all(torch.equal(p.grad, 2 * b) for p, b in zip(several, before, strict=True))
    assert [p.grad.stride() for p in several] == strides
    assert twin.under_way == 0
    assert twin.most_under_way <= 3
    assert sum(twin.sizes[1:]) == sum(p.grad.nbytes for p in several)
    assert all(size <= max(message, max(p.grad.nbytes for p in several)) for size in twin.sizes[1:])


def test_what_is_frozen_or_has_no_gradient_anywhere_stays_without():
    frozen, unused, used = (nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    used.grad = torch.ones(3)
    sum_gradients([frozen, unused, used], Twin())
    assert frozen.grad is None
    assert unused.grad is None
    assert torch.equal(used.grad, torch.full((3,), 2.0))
    sum_gradients([frozen], Twin())


def test_a_gradient_that_only_others_have_is_theirs():
    def other(flat: Tensor):
        return lambda: flat.add_(1)  # the other process has ones everywhere

    lacking = nn.Parameter(torch.ones(2, 2))
    sum_gradients([lacking], other)
    assert torch.equal(lacking.grad, torch.ones(2, 2))


def test_groups_keep_the_order_and_split_by_type():
    tensors = [torch.zeros(n, dtype=t) for n, t in [(2, torch.float32), (3, torch.float64), (1, torch.float32)]]
    assert [[len(t) for t in group] for group in groups(tensors, 8)] == [[2], [1], [3]]
    assert [[len(t) for t in group] for group in groups(tensors, 12)] == [[2, 1], [3]]
    assert list(groups([], 8)) == []
