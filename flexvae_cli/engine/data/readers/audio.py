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
from flexvae_cli.engine.data.readers.whole import require_pages, require_samples
from flexvae_cli.errors import UsageError

KINDS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".oga": "OGG"}
TAG, TAGGED = b"ID3", ("FLAC",)  # behind such a tag libsndfile would read whatever comes
HEADS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", TAG, b"OggS")  # of these kinds; libsndfile would try twenty others
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG")  # as libsndfile calls them
MOST_RATE = {"WAV": 10_000_000, "FLAC": 655_350, "OGG": 200_000}  # beyond that of OGG its encoder crashes
MOST_CHANNELS = {"WAV": 1024, "FLAC": 8, "OGG": 255}
UNREAD = "is no sound that can be read (neither WAV nor FLAC nor OGG)"
PIECE = 1 << 15  # samples written at once: given a minute, the encoder of OGG overflows its stack
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
        with _opened(path, every=True) as file:
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
        kind, subtype = KINDS[suffix], about.get("subtype")
        rate = self._rate(about, len(data), data.shape[1], kind)
        if "frames" in about:
            data = resampled(data, about["frames"])
        if subtype is None or not soundfile.check_format(kind, subtype):
            subtype = soundfile.default_subtype(kind)
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", rate, data.shape[1], subtype, format=kind) as sound:
            for start in range(0, len(data), PIECE):
                sound.write(data[start : start + PIECE].clip(-1, 1))
        return file.getvalue()

    def check(self, about: About, shape: Shape, suffix: str) -> None:
        self._rate(about, shape[1], shape[0], KINDS[suffix])
        super().check({key: value for key, value in about.items() if key != "frames"}, shape, suffix)

    def settled(self, headers: list[Header]) -> Mapping[str, Any]:
        """The rate of most files; of equally many the highest."""
        if self.rate is not None:
            return {}
        rates = Counter(header.rate for header in headers if header.rate)
        return {"rate": max(rates, key=lambda rate: (rates[rate], rate))} if rates else {}

    def _rate(self, about: About, length: int, channels: int, kind: str) -> int:
        """Samples per second of the file that so many samples of the net come from.

        Raises:
            ValueError: that is no rate, the kind of file cannot have it or the channels, or so many samples were not
                in it.
        """
        rate, frames = about.get("rate", self.rate or RATE), about.get("frames")
        if not isinstance(rate, int):
            raise ValueError(f"there is no rate of {rate} samples per second")
        if beyond := _beyond(kind, rate, channels):
            raise ValueError(beyond)
        if frames is not None and abs(resampled_length(frames, rate, self.rate or rate) - length) > 1:
            raise ValueError(f"{length:,} samples at {self.rate or rate:,} per second are not {frames:,} at {rate:,}")
        return rate

    def _check(self, path: Path, file: Any, like: Shape) -> None:
        if not file.frames:
            raise BadFile(path, "is empty: it holds no samples")
        if beyond := _beyond(KINDS[self.suffix(path.name)], file.samplerate, like[0]):
            raise BadFile(path, f"could not be written again: {beyond}")
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


def _beyond(kind: str, rate: int, channels: int) -> str:
    """Why there is no file of that kind with so many samples per second and channels; empty where there is."""
    if not 0 < rate <= MOST_RATE[kind]:
        return f"there is no {kind} of {rate:,} samples per second"
    return f"there is no {kind} of {channels:,} channels" if channels > MOST_CHANNELS[kind] else ""


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the library that it wraps is missing
        raise UsageError("reading sound needs soundfile", hint="pip install 'flexvae[audio]'") from error
    return soundfile


@contextmanager
def _opened(path: Path, *, every: bool = False) -> Iterator[Any]:
    """A sound file, its header read; whatever soundfile raises inside is the file's fault.

    Args:
        path: the file.
        every: whether all pages of an OGG are looked at, not only its last one.

    Raises:
        BadFile: it cannot be read, or is not whole.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is not a regular file")
        if not path.stat().st_size:
            raise BadFile(path, "is empty")
        with path.open("rb") as raw:
            head = raw.read(4)
            if not head.startswith(HEADS):
                raise BadFile(path, UNREAD)
        with handed(path) as given, _soundfile().SoundFile(given) as file:
            if file.format not in (TAGGED if head.startswith(TAG) else FORMATS):
                raise BadFile(path, UNREAD)
            if file.format == "OGG":
                require_pages(path, every=every)
            elif file.format != "FLAC":  # libsndfile follows the checksums of that itself
                require_samples(path)
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
