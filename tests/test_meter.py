"""Means of steps, and what they take."""

from __future__ import annotations

import pytest
import torch

from flexvae_cli.engine import meter
from flexvae_cli.engine.memory.machine import process_memory
from flexvae_cli.engine.meter import Meter


def values(loss: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(1.0)}


def test_means_speed_waiting_and_memory():
    found = Meter()
    for loss in (1.0, 2.0):
        with found.waiting():
            pass
        with found.stepping():
            found.add(values(loss), 4)
    read = found.read()
    assert read["loss"] == 1.5
    assert read["images_per_second"] > 0
    assert 0 <= read["data_wait"] <= 1
    assert 1e7 < read["memory_bytes"] <= process_memory("VmHWM")


def test_a_system_that_does_not_tell_its_memory_costs_that_number_alone(monkeypatch):
    def unknown(key: str) -> int:
        raise OSError("no /proc")

    monkeypatch.setattr(meter, "process_memory", unknown)
    found = Meter()
    with found.stepping():
        found.add(values(1.0), 4)
    assert "memory_bytes" not in found.read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_on_a_gpu_it_is_the_gpu_s_memory():
    found = Meter()
    with found.stepping():
        found.add({name: value.cuda() for name, value in values(1.0).items()}, 4)
    assert found.read()["memory_bytes"] == torch.cuda.max_memory_allocated()
