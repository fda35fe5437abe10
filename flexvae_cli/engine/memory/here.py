"""This machine's own GPU, for a prediction."""

from __future__ import annotations

import torch

from flexvae_cli.engine.memory.devices import Gpu
from flexvae_cli.errors import UsageError


def gpu_here() -> Gpu:
    """The first GPU of this machine.

    Raises:
        UsageError: there is none.
    """
    if not torch.cuda.is_available():
        raise UsageError("this machine has no CUDA GPU", where="--gpu", hint="name one, as in --gpu h100-80")
    found = torch.cuda.get_device_properties(0)
    return Gpu(found.name, found.total_memory, (found.major, found.minor))
