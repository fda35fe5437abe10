"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest

from flexvae_cli.config.settings import ScheduleTable
from flexvae_cli.engine.schedule import rate_factor


def rates(max_steps: int, **settings) -> list[float]:
    schedule = ScheduleTable(**settings)
    return [rate_factor(step, schedule, max_steps) for step in range(max_steps)]


def test_warm_up_is_linear_and_reaches_the_rate():
    assert rates(6, name="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_one_to_final():
    found = rates(101, name="cosine", warmup_steps=1, final=0.1)
    assert found[0] == found[1] == 1.0
    assert found[51] == pytest.approx(0.55)
    assert rate_factor(101, ScheduleTable(name="cosine", warmup_steps=1, final=0.1), 101) == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)


def test_step_multiplies_every_so_many_steps():
    assert rates(7, name="step", step_size=2, gamma=0.5, warmup_steps=1) == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
