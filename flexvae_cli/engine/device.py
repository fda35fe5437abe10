"""Where to compute, how freed memory is handled, and how one knows that there is no more."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Literal

import torch

from flexvae_cli.engine.cores import settle_threads
from flexvae_cli.engine.memory.allocator_settings import prefer_expandable
from flexvae_cli.engine.place import Place
from flexvae_cli.errors import UsageError

OUT_OF_MEMORY = (  # where torch and the libraries under it raise a plain RuntimeError
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a primitive",  # oneDNN's scratch memory
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**31 - 1
LARGE = 1 << 18  # bytes


def choose_device(name: str, where: str = "train.device") -> torch.device:
    """The device of that name; `auto` is the first GPU, else the CPU.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        where: the setting or option that it comes from, for the message.

    Raises:
        UsageError: this machine does not have it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise UsageError(f"'{name}' is not on this machine", where=where, hint="use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("'mps' is not on this machine", where=where, hint="use auto or cpu")
    return torch.device(name)


def device_at(name: str, place: Place, where: str = "train.device") -> torch.device:
    """The device of a process: its own GPU where there are GPUs, see `choose_device`.

    Raises:
        UsageError: there are not as many, or the name stands for one device alone.
    """
    if place.alone or name == "cpu":
        return choose_device(name, where)
    if ":" in name or name == "mps":
        hint = f"use {name.partition(':')[0]}: every process then takes its own" if ":" in name else "use cpu"
        raise UsageError(f"'{name}' is one device, for {place.size} processes", where=where, hint=hint)
    device = choose_device(name, where)
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        hint = f"start one for each GPU: torchrun --nproc-per-node {count} ..."
        what = f"process {place.local_rank} of this machine finds no GPU of its own: there are {count}"
        raise UsageError(what, where=where, hint=hint)
    return torch.device("cuda", place.local_rank)


def keep_freed_memory(allocator: Literal["keep", "system"] = "keep") -> bool:
    """Tell glibc to keep freed memory instead of returning it page by page; returns whether that was done.

    A training step frees and takes the same large blocks again and again; each return to the kernel costs page faults.
    Both thresholds are needed: the second alone makes it slower. On CUDA torch's allocator keeps freed memory anyway;
    there its segments are let grow, so that less lies idle between blocks: this has to come before a GPU's first use.
    Elsewhere than on glibc and CUDA nothing happens, nor where the environment variable FLEXVAE_ALLOCATOR is `system`.

    Raises:
        UsageError: the environment has options of the allocator that leak together.
    """
    if "system" in (allocator, os.environ.get("FLEXVAE_ALLOCATOR")):
        return False
    if torch.version.cuda and platform.system() == "Linux" and torch.cuda.is_available():
        prefer_expandable(os.environ)
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, NEVER)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def settle(allocator: Literal["keep", "system"] = "keep") -> None:
    """Set up memory and threads of this process; to be called before a GPU is used.

    What `keep` has set stays where `system` follows in the same process: the heap, and CUDA's variable.

    Raises:
        UsageError: as for `keep_freed_memory`.
    """
    keep_freed_memory(allocator)
    settle_threads()


def return_freed_memory() -> bool:
    """Tell glibc to return every large block to the kernel as soon as it is freed; returns whether that was done.

    Where the peak of the process counts: in a heap that is kept, blocks of ever other sizes leave gaps.
    """
    if os.environ.get("FLEXVAE_ALLOCATOR") == "system" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, LARGE))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, and nothing else."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
