from __future__ import annotations

import pytest

from flexvae_cli.engine.place import Place, find_place, require_parts
from flexvae_cli.errors import UsageError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_torchrun_says_where_a_process_stands():
    assert find_place(TORCHRUN) == Place(rank=5, size=8, local_rank=1)


@pytest.mark.parametrize("environment", [{}, {"RANK": "0"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_without_others_a_process_is_alone(environment):
    place = find_place(environment)
    assert place.alone
    assert place == Place(0, 1, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": None}, "RANK: is not set"),
        ({"LOCAL_RANK": "two"}, "LOCAL_RANK: wants a whole number, not 'two'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT: is not set"),
        ({"RANK": "8"}, "RANK: 8 is not among the ranks of 8 processes"),
        ({"RANK": "0"}, "RANK: 0 is not among"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE: wants a whole number"),
        ({"WORLD_SIZE": "٨"}, "WORLD_SIZE: wants a whole number"),
    ],
)
def test_a_half_set_environment_is_refused(change, said):
    environment = {key: value for key, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(UsageError) as caught:
        find_place(environment)
    assert said in str(caught.value)
    assert "torchrun" in str(caught.value)


def test_a_batch_has_a_sample_for_every_micro_batch():
    require_parts(8, 4, Place(0, 2))
    require_parts(3, 3, Place())
    with pytest.raises(UsageError, match="cannot cut a batch of 3 into 4 parts, 2 for each process"):
        require_parts(3, 2, Place(0, 2))
