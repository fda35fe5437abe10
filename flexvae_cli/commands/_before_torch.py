"""Settings that libraries read from the environment, once, while torch is loaded."""

from __future__ import annotations

import os
import sys


def before_torch(variable: str, value: str) -> None:
    """Set a variable of the environment, unless the user has, or torch is loaded, which would not see it any more."""
    if "torch" not in sys.modules:
        os.environ.setdefault(variable, value)
