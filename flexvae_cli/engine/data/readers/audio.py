"""Sound: WAV, FLAC and OGG by soundfile, which the extra `audio` installs."""

from __future__ import annotations

import io
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flexvae_cli.api import Shape
from flexvae_cli.api.readers import About, BadFile, Header, Reader, Reading
from flexvae_cli.engine.data.members import handed
from flexvae_cli.engine.data.readers.span import require_finite
from flexvae_cli.errors import UsageError

KINDS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG"}
HEADS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"ID3", b"OggS")  # of these kinds; libsndfile would try twenty others
MOST_PAGE = 27 + 255 + 255 * 255  # bytes of a page of OGG
MOST_RATE = 10_000_000  # of what is written: beyond what any converter takes
RATE = 44_100  # of what is written where neither a file nor the config says


class Audio(Reader):
    """See `flexvae_cli.builtin_readers.audio`."""

    def __init__(self, rate: int | None, *, resample: bool, mix: bool) -> None:
        self.rate = rate
        self.resample = resample
        self.mix = mix

    def finds(self, name: str, head: bytes) -> bool:
        return name.lower().endswith(tuple(KINDS)) or (
            (head.startswith(b"RIFF") and head[8:12] == b"WAVE") or head.startswith((b"fLaC", b"OggS"))
        )

    def header(self, path: Path, like: Shape) -> Header:
        with _opened(path) as file:
            self._check(path, file, like)
            frames = file.frames
            if self.rate is not None and file.samplerate != self.rate:
                frames = resampled_length(frames, file.samplerate, self.rate)
            return Header((like[0], frames), file.samplerate)

    def read(self, path: Path, like: Shape) -> Reading:
        with _opened(path) as file:
            self._check(path, file, like)
            about = {"rate": file.samplerate, "frames": file.frames, "subtype": file.subtype}
            x = file.read(dtype="float32", always_2d=True)  # (n, c)
            if len(x) < file.frames:
                raise BadFile(path, f"is truncated: {file.frames:,} samples are claimed, {len(x):,} are there")
        require_finite(path, x)
        if x.shape[1] != like[0]:
            x = x.mean(axis=1, keepdims=True) if like[0] == 1 else np.repeat(x, like[0], axis=1)
        if self.rate is not None and about["rate"] != self.rate:
            x = resampled(x, resampled_length(len(x), about["rate"], self.rate))
        return Reading(x, -1.0, 1.0, about)

    def suffix(self, name: str) -> str:
        ending = Path(name).suffix.lower()
        return ending if ending in KINDS else ".wav"

    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:
        soundfile, data = _soundfile(), np.ascontiguousarray(x.T)  # (n, c)
        rate = self._rate(about, len(data))
        if "frames" in about:
            data = resampled(data, about["frames"])
        kind, subtype = KINDS[suffix], about.get("subtype")
        if subtype is None or not soundfile.check_format(kind, subtype):
            subtype = soundfile.default_subtype(kind)
        file = io.BytesIO()
        soundfile.write(file, data.clip(-1, 1), rate, format=kind, subtype=subtype)
        return file.getvalue()

    def check(self, about: About, shape: Shape, suffix: str) -> None:
        self._rate(about, shape[1])
        super().check({key: value for key, value in about.items() if key != "frames"}, shape, suffix)

    def settled(self, headers: list[Header]) -> Mapping[str, Any]:
        """The rate of most files; of equally many the highest."""
        if self.rate is not None:
            return {}
        rates = Counter(header.rate for header in headers if header.rate)
        return {"rate": max(rates, key=lambda rate: (rates[rate], rate))} if rates else {}

    def _rate(self, about: About, length: int) -> int:
        """Samples per second of the file that so many samples of the net come from.

        Raises:
            ValueError: that is no rate, or the file cannot have had so many samples.
        """
        rate, frames = about.get("rate", self.rate or RATE), about.get("frames")
        if not isinstance(rate, int) or not 0 < rate <= MOST_RATE:
            raise ValueError(f"there is no rate of {rate} samples per second")
        if frames is not None and abs(resampled_length(frames, rate, self.rate or rate) - length) > 1:
            raise ValueError(f"{length:,} samples at {self.rate or rate:,} per second are not {frames:,} at {rate:,}")
        return rate

    def _check(self, path: Path, file: Any, like: Shape) -> None:
        if not file.frames:
            raise BadFile(path, "is empty: it holds no samples")
        if self.rate is not None and file.samplerate != self.rate and not self.resample:
            what = f"has {file.samplerate:,} samples per second; wanted are {self.rate:,}"
            raise BadFile(path, f"{what}; data.resample = true converts it")
        if file.channels != like[0]:
            what = f"has {file.channels} channel{'s' * (file.channels > 1)}; wanted are {like[0]}"
            if not self.mix:
                raise BadFile(path, f"{what}; data.mix = true converts it")
            if 1 not in (file.channels, like[0]):
                raise BadFile(path, f"{what}, and only one channel can be made of several, or several of one")


def resampled_length(frames: int, rate: int, wanted: int) -> int:
    """How many samples a sound has at another rate."""
    return max(1, round(frames * wanted / rate))


def resampled(x: np.ndarray, length: int) -> np.ndarray:
    """A sound (n, c) with another number of samples, by its spectrum: frequencies that do not fit are cut off."""
    if length == len(x):
        return x
    spectrum = np.fft.rfft(x, axis=0)
    wide = np.fft.irfft(spectrum[: length // 2 + 1], n=length, axis=0) * (length / len(x))
    return wide.astype(np.float32)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the library that it wraps is missing
        raise UsageError("reading sound needs soundfile", hint="pip install 'flexvae[audio]'") from error
    return soundfile


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A sound file, its header read; whatever soundfile raises inside is the file's fault."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is not a regular file")
        if not path.stat().st_size:
            raise BadFile(path, "is empty")
        with path.open("rb") as raw:
            if not raw.read(4).startswith(HEADS):
                raise BadFile(path, "is no sound that can be read (neither WAV nor FLAC nor OGG)")
        with handed(path) as given, _soundfile().SoundFile(given) as file:
            _require_there(path, file)
            yield file
    except (BadFile, UsageError):
        raise
    except OSError as error:
        raise BadFile(path, f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    except MemoryError as error:
        raise BadFile(path, "does not fit into memory") from error
    except Exception as error:  # LibsndfileError, and what damaged data raises
        what = str(error).rpartition(": ")[2].strip().rstrip(".").lower() or type(error).__name__
        raise BadFile(path, f"is no sound that can be read ({what})") from error


def _require_there(path: Path, file: Any) -> None:
    """Refuse a WAV that claims more than it holds, and an OGG without its end: libsndfile gives what is there."""
    if file.format == "OGG" and not _has_end(path):
        raise BadFile(path, "is truncated: it has no last page")
    if file.format not in ("WAV", "WAVEX"):
        return
    with path.open("rb") as raw:
        raw.seek(12)
        while len(head := raw.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                there = path.stat().st_size - raw.tell()
                if size > there:
                    raise BadFile(path, f"is truncated: {size:,} bytes of samples are claimed, {there:,} are there")
                return
            raw.seek(size + size % 2, io.SEEK_CUR)


def _has_end(path: Path) -> bool:
    """Whether the last page of an OGG is whole, and says that it ends its stream (RFC 3533)."""
    with path.open("rb") as raw:
        raw.seek(max(0, path.stat().st_size - MOST_PAGE))
        tail = raw.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) > 26 and bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(segments)
