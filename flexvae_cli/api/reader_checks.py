"""The checks that `check_reader` runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flexvae_cli.api.readers import HEAD, BadFile, Header, Reader, Reading
from flexvae_cli.api.trace import Shape, text

MOST = 1 << 24  # numbers that are read of a damaged file, whatever it claims
NEAR = 0.1  # mean distance in [-1, 1] of samples to what comes back of them: types round, compression blurs


def reader_faults(
    make: Callable[[], Any], axes: Sequence[int], file: Path | None = None, like: Shape | None = None
) -> Iterator[str]:
    """What is wrong with a reader: it can go to data workers, bears files of any content, and reads what it writes.

    Args:
        make: makes the reader.
        axes: the numbers of spatial axes that its samples can have.
        file: one of its kind; without it the reader meets damaged ones alone.
        like: (c, *space) of a training sample, for `file`.
    """
    reader = make()
    if not isinstance(reader, Reader):
        yield f"the factory makes a {type(reader).__name__}, not a Reader"
        return
    yield from _stays_here(reader)
    whole = file.read_bytes() if file else b""
    noise = random.Random(0).randbytes(4096)
    damaged = {"empty": b"", "noise": noise, "cut": whole[: len(whole) // 2], "bent": whole[:64] + noise}
    with TemporaryDirectory(prefix="flexvae-") as folder:
        for name in damaged if file else ("empty", "noise"):
            path = Path(folder, name + (file.suffix if file else ""))
            path.write_bytes(damaged[name])
            for shape in [like] if like else [(1, *(8,) * n) for n in axes]:
                yield from _bears(reader, path, shape)
        if file and like:
            yield from _reads(reader, file, like, Path(folder))


def _stays_here(reader: Reader) -> Iterator[str]:
    from multiprocessing.reduction import ForkingPickler

    try:
        ForkingPickler.dumps(reader)
    except Exception as error:  # whatever a stranger's object raises
        yield f"it cannot be pickled, as data workers need it: {type(error).__name__}: {error}"


def _bears(reader: Reader, path: Path, like: Shape) -> Iterator[str]:
    """A file that is none is refused with `BadFile`, or read."""
    what = "header"
    try:
        header = reader.header(path, like)
        what = "read"
        if math.prod(header.shape) <= MOST:
            reader.read(path, like)
    except BadFile:
        return
    except Exception as error:
        yield f"{what} raises {type(error).__name__}, not BadFile, for a file that is {path.stem}: {error}"


def _reads(reader: Reader, file: Path, like: Shape, folder: Path) -> Iterator[str]:
    """Header and numbers agree, and a file written of the samples has them."""
    with file.open("rb") as opened:
        if not reader.finds(file.name, opened.read(HEAD)):
            yield f"it does not find {file.name}"
    wrong = list(_told(reader, file, like))
    yield from wrong
    if wrong:
        return
    reading, suffix = reader.read(file, like), reader.suffix(file.name)
    x = _sample(reading)
    for about in [reading.about, {}] if reading.about else [reading.about]:
        own = about is reading.about
        data = reader.write(x, about, suffix)
        if not isinstance(data, bytes):
            yield f"write gives {type(data).__name__}, not bytes"
            return
        if not suffix:  # as any output ends, which is not to be read here
            continue
        again = folder / f"again{suffix}"
        again.write_bytes(data)
        known = "" if own else ", with an empty about,"
        try:
            back = _sample(reader.read(again, like))
        except BadFile as bad:
            if own:
                yield f"it cannot read what it writes: {bad.reason}"
            continue  # what a file said may be needed to read it again
        if back.shape != x.shape:
            yield f"what it writes of {text(x.shape)}{known} is {text(back.shape)} when it is read"
        elif own and float(abs(back - x).mean()) > NEAR:
            yield f"what it writes is {float(abs(back - x).mean()):.2f} away, on average, when it is read"


def _told(reader: Reader, file: Path, like: Shape) -> Iterator[str]:
    import numpy as np

    header, reading = reader.header(file, like), reader.read(file, like)
    if not isinstance(header, Header) or not isinstance(reading, Reading):
        yield f"header and read give {type(header).__name__} and {type(reading).__name__}, not Header and Reading"
        return
    if len(header.shape) != len(like) or header.shape[0] != like[0]:
        yield f"header says {text(header.shape)}, wanted are the channels and the number of axes of {text(like)}"
    wanted = (*header.shape[1:], header.shape[0])
    if tuple(reading.data.shape) != wanted:
        yield f"header says {text(header.shape)}, read gives {text(tuple(reading.data.shape))}, not {text(wanted)}"
    if not (math.isfinite(reading.low) and math.isfinite(reading.high) and reading.low < reading.high):
        yield f"read says that {reading.low} becomes -1 and {reading.high} becomes 1"
    if not np.isfinite(reading.data).all():
        yield "read gives numbers that are not finite"


def _sample(reading: Reading) -> Any:
    """float32 (c, *space) in [-1, 1]."""
    import numpy as np

    unit = (np.moveaxis(reading.data, -1, 0).astype(np.float64) - reading.low) / (reading.high - reading.low)
    return (2 * unit - 1).clip(-1, 1).astype(np.float32)
