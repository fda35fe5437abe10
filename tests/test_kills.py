"""kill -9, at any moment: what is resumed ends with the same bits as what was never killed."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the harness needs Linux")


@pytest.mark.timeout(1200)
def test_killed_at_random_moments(harness, fuzz_factor):
    kills = 100 * min(fuzz_factor, 20)
    found = harness("random", kills)
    assert found.pop("runs") > 1
    found.pop("orphans")  # seldom any: moments of writing are few
    assert found == {"kills": kills, "left": 0, "invalid": 0, "different": "", "failed": ""}


@pytest.mark.timeout(1200)
def test_killed_at_every_point_of_a_save(harness, fuzz_factor):
    each = 3 * min(fuzz_factor, 10)
    found = harness("points", each)
    assert found.pop("orphans") > each
    assert found == {"kills": 8 * each, "runs": 8 * each, "left": 0, "invalid": 0, "different": "", "failed": ""}


@pytest.mark.timeout(1200)
def test_killed_encodes_go_on_to_the_same_bytes(harness, fuzz_factor):
    kills = 6 * min(fuzz_factor, 50)
    found = harness("encodes", kills)
    assert found.pop("runs") >= 5
    assert found == {"kills": kills, "orphans": 0, "left": 0, "invalid": 0, "different": "", "failed": ""}


NIGHTLY = os.environ.get("FLEXVAE_NIGHTLY") == "1"


@pytest.mark.skipif(not NIGHTLY, reason="takes a minute")
@pytest.mark.timeout(1200)
def test_encodes_killed_at_every_turn_and_step_go_on_to_the_same_bytes(harness):
    """Shards 30 times, each of the other layouts 6 times; see `stepwise_killed_encodes`."""
    found = harness("steps", 30)
    assert found == {"kills": 48, "runs": 48, "orphans": 0, "left": 0, "invalid": 0, "different": "", "failed": ""}
