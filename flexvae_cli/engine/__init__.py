"""Everything that needs torch. Knows the light half, never the terminal."""

from __future__ import annotations

import os

# Threads that spin while they wait take the cores from whoever else computes: two trainings on two cores then run some
# forty times slower. OpenMP reads this when torch is imported, so it has to be said before that; the user's word wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
