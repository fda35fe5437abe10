"""The GPUs that a prediction can be made for by name."""

from __future__ import annotations

from dataclasses import dataclass

from flexvae_cli.errors import UsageError, did_you_mean, listed

GIB = 2**30
CONTEXT = 600 * 2**20
"""Bytes that CUDA's context and the libraries' kernels take beside torch's allocator; 290 to 430 MiB were met."""

NCCL = 2**30
"""Bytes left to NCCL where several GPUs train together: not measured; users tell of 1 to 1.6 GB for all-reduce."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: what it is called here.
        total: bytes that a process can see of its memory, less than what it is sold with.
        capability: CUDA's compute capability.
    """

    name: str
    total: int
    capability: tuple[int, int]

    @property
    def bf16(self) -> bool:
        return self.capability >= (8, 0)

    @property
    def cublas_workspace(self) -> int:
        """Bytes that torch takes once for cuBLAS, as in `CUDABlas.cpp`."""
        return 32 * 2**20 if self.capability[0] == 9 else 4096 * 2 * 1024 + 16 * 8 * 1024


# GiB as torch's out-of-memory messages have them ("has a total capacity of ..."), the least that was met
GPUS = {
    name: Gpu(name, int(total * GIB), capability)
    for name, total, capability in (
        ("h200", 139.80, (9, 0)),
        ("h100-80", 79.10, (9, 0)),
        ("a100-80", 79.10, (8, 0)),
        ("a100-40", 39.38, (8, 0)),
        ("a10", 21.98, (8, 6)),
        ("l4", 21.95, (8, 9)),
        ("6000-ada", 44.43, (8, 9)),
        ("5090", 31.36, (12, 0)),
        ("4090", 23.52, (8, 9)),
        ("3090", 23.57, (8, 6)),
        ("3080-10", 9.77, (8, 6)),
        ("3070", 7.77, (8, 6)),
        ("v100-32", 31.73, (7, 0)),
        ("t4", 14.56, (7, 5)),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; `rtx`, `nvidia`, blanks and case do not matter.

    Raises:
        UsageError: it is not known.
    """
    key = name.lower().replace(" ", "-").replace("nvidia-", "").replace("rtx", "").strip("-_")
    if key in GPUS:
        return GPUS[key]
    variants = [known for known in GPUS if known.startswith(f"{key}-")]
    if len(variants) == 1:
        return GPUS[variants[0]]
    if variants:
        raise UsageError(f"there are several '{name}': {listed(variants)}", where="--gpu")
    hint = f"known are {', '.join(GPUS)}; for another one name the nearest and give its --memory"
    raise UsageError(f"no GPU '{name}' is known{did_you_mean(key, GPUS)}", where="--gpu", hint=hint)
