"""Volumes: NIfTI by nibabel and stacks of TIFF by tifffile, which the extra `volume` installs."""

from __future__ import annotations

import gzip
import io
import logging
import math
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from flexvae_cli.api import Shape
from flexvae_cli.api.readers import About, BadFile, Header, Reader, Reading
from flexvae_cli.engine.data.members import handed
from flexvae_cli.engine.data.readers.span import Span, typed
from flexvae_cli.engine.data.readers.whole import require_end
from flexvae_cli.engine.data.tiff_pages import require_pages
from flexvae_cli.errors import UsageError

NIFTI, TIFF = (".nii.gz", ".nii"), (".tiff", ".tif")
HEADER_FIELDS = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d")
MOST_OF_NIFTI_1 = 32_767  # positions of an axis
MOST_BEHIND = 1 << 24  # bytes that an unpacked NIfTI may have behind its voxels
MOST_RATIO = 1100  # deflate makes nothing smaller than that; other compressions have no such bound
PLAIN, DEFLATE = 1, (8, 32946)  # compressions, as a TIFF numbers them
_alone = threading.Lock()  # the filters of warnings are the process's, and headers are looked at in threads
OFFSETS = ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")


class Volumes(Reader):
    """See `flexvae_cli.builtin_readers.volumes`."""

    def __init__(self, volume: int | None, span: Span) -> None:
        self.volume = volume
        self.span = span

    def finds(self, name: str, head: bytes) -> bool:  # noqa: ARG002 - the end of the name decides
        return name.lower().endswith(NIFTI + TIFF)

    def header(self, path: Path, like: Shape) -> Header:
        with _bad_is_bad(path):
            if _is_tiff(path):
                _require_one(path, like)
                with handed(path) as given, _package("tifffile").TiffFile(given) as file:
                    return Header((1, *_series(path, file).shape))
            with _nifti(path) as (image, _):
                return Header(self._planes(path, image.shape, like))

    def read(self, path: Path, like: Shape) -> Reading:
        with _bad_is_bad(path):
            data, about = self._tiff(path, like) if _is_tiff(path) else self._image(path, like)
            if data.dtype.kind not in "biuf":
                raise BadFile(path, f"holds {data.dtype.name}, not real numbers")
            low, high = self.span.of(path, data)
        return Reading(data, low, high, {**about, "low": low, "high": high})

    def suffix(self, name: str) -> str:
        lower = name.lower()
        return next((each for each in NIFTI + TIFF if lower.endswith(each)), ".nii.gz")

    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:
        low = about.get("low", -1.0 if self.span.low is None else self.span.low)
        high = about.get("high", 1.0 if self.span.high is None else self.span.high)
        data = typed(x, low, high, np.dtype(about.get("dtype", "<f4")))
        if suffix in TIFF:
            file = io.BytesIO()
            resolution = about.get("resolution")
            _package("tifffile").imwrite(file, data[0], photometric="minisblack", resolution=resolution)
            return file.getvalue()
        nibabel = _package("nibabel")
        volume = data[0] if len(data) == 1 else np.moveaxis(data, 0, -1)
        of_this_size = nibabel.Nifti1Image if max(volume.shape) <= MOST_OF_NIFTI_1 else nibabel.Nifti2Image
        affine = np.array(about.get("affine", np.eye(4).tolist()))
        placed = affine if np.linalg.det(affine[:3, :3]) else None  # a flat one is made of the fields below alone
        image = of_this_size(volume, placed, dtype=volume.dtype)  # 64 bits are refused where they are not named
        header = about.get("header", {})
        for field in HEADER_FIELDS + OFFSETS:
            if field in header:
                image.header[field] = header[field]
        image.header["pixdim"][4:] = 1
        packed: bytes = image.to_bytes()
        return gzip.compress(packed, mtime=0) if suffix == ".nii.gz" else packed

    def _planes(self, path: Path, shape: Shape, like: Shape) -> Shape:
        """(c, *space) of a NIfTI."""
        if len(shape) not in (3, 4):
            raise BadFile(path, f"has {len(shape)} axes; wanted are three, or four with channels")
        if 0 in shape:
            raise BadFile(path, f"is empty: its shape is {'x'.join(map(str, shape))}")
        channels = shape[3] if len(shape) == 4 else 1
        if self.volume is not None and self.volume >= channels:
            raise BadFile(path, f"has no volume {self.volume}; there are {channels}, counted from 0")
        channels = 1 if self.volume is not None else channels
        if channels != like[0]:
            raise BadFile(path, f"has {channels} volumes; wanted are {like[0]}: set data.volume to take one")
        return (channels, *shape[:3])

    def _image(self, path: Path, like: Shape) -> tuple[np.ndarray, dict[str, Any]]:
        """A NIfTI (i, j, k, c), its slope and intercept applied."""
        with _nifti(path) as (image, stream):
            self._planes(path, image.shape, like)
            header, proxy = image.header, image.dataobj
            scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
            data = np.asanyarray(proxy if scaled else proxy.get_unscaled())
            data = data.astype(np.float32) if scaled else np.array(data)
            if isinstance(stream, gzip.GzipFile):
                require_end(path, stream, MOST_BEHIND)
        if data.ndim == 4 and self.volume is not None:
            data = data[..., self.volume]
        about = {
            "dtype": data.dtype.newbyteorder("=").str,
            "affine": image.affine.tolist(),
            "header": {
                field: header[field].tolist()
                for field in HEADER_FIELDS + OFFSETS
                if np.isfinite(header[field]).all()  # in those that are not used there may be anything
            },
        }
        return data if data.ndim == 4 else data[..., None], about

    def _tiff(self, path: Path, like: Shape) -> tuple[np.ndarray, dict[str, Any]]:
        """A stack (page, row, column, 1)."""
        _require_one(path, like)
        with handed(path) as given, _package("tifffile").TiffFile(given) as file:
            data, page = _series(path, file).asarray(), file.pages[0]
            _require_stack(path, data.shape)  # damaged tags may make it another one
            resolution = getattr(page, "resolution", None)
        about: dict[str, Any] = {"dtype": data.dtype.newbyteorder("=").str}
        if resolution is not None and np.isfinite(resolution).all():
            about["resolution"] = [float(each) for each in resolution]
        return data[..., None], about


def _is_tiff(path: Path) -> bool:
    return path.name.lower().endswith(TIFF)


def _require_one(path: Path, like: Shape) -> None:
    if like[0] != 1:
        raise BadFile(path, f"is a stack of one channel; wanted are {like[0]}")
    require_pages(path)


def _series(path: Path, file: Any) -> Any:
    """The stack of a TIFF whose pages have been looked at, and can be true."""
    series = file.series[0]
    _require_stack(path, series.shape)
    page = series.keyframe
    if page.compression in (PLAIN, *DEFLATE):
        bits = math.prod(series.shape) * page.bitspersample  # those of black and white have one
        _require_room(path, -(-bits // 8), packed=page.compression != PLAIN)
    return series


def _require_stack(path: Path, shape: Shape) -> None:
    if len(shape) != 3 or 0 in shape:
        raise BadFile(path, f"is no stack of grey pages: its shape is {'x'.join(map(str, shape))}")


def _require_room(path: Path, needed: int, *, packed: bool) -> None:
    """Refuse a file that claims more bytes of voxels than it can hold."""
    there = path.stat().st_size
    if needed > there * (MOST_RATIO if packed else 1):
        raise BadFile(path, f"is truncated: {needed:,} bytes of voxels are claimed, the file has {there:,}")


@contextmanager
def _nifti(path: Path) -> Iterator[tuple[Any, IO[bytes]]]:
    """A NIfTI whose header has been read, and can be true, and the stream that its numbers are read from."""
    with path.open("rb") as file:
        stream: Any = gzip.GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file
        image = _image_of(path, stream)
        _require_true(path, image)
        yield image, stream


def _image_of(path: Path, stream: IO[bytes]) -> Any:
    """The NIfTI in a stream, by what its header says is its size."""
    kinds = {348: _package("nibabel").Nifti1Image, 540: _package("nibabel").Nifti2Image}
    head = stream.read(4)
    stream.seek(0)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        kind = kinds.get(int.from_bytes(head, order))
        if kind is not None:
            return kind.from_stream(stream)
    raise BadFile(path, "is no volume that can be read (no NIfTI)" if head else "is empty")


def _require_true(path: Path, image: Any) -> None:
    """Refuse a NIfTI that claims what cannot be.

    Raises:
        BadFile: says what.
    """
    if not np.isfinite(image.affine).all():
        raise BadFile(path, "has an affine that is not finite")
    needed = math.prod(image.shape) * image.get_data_dtype().itemsize
    _require_room(path, needed, packed=path.name.lower().endswith(".gz"))


def _package(name: str) -> Any:
    try:
        if name == "nibabel":
            import nibabel

            return nibabel
        import tifffile

        return tifffile
    except ImportError as error:
        raise UsageError(f"reading this volume needs {name}", hint="pip install 'flexvae[volume]'") from error


@contextmanager
def _bad_is_bad(path: Path) -> Iterator[None]:
    """Whatever the packages raise inside is the file's fault; they say nothing by themselves."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is not a regular file")
        with _alone, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (BadFile, UsageError):
        raise
    except EOFError as error:
        raise BadFile(path, "is truncated") from error
    except MemoryError as error:
        raise BadFile(path, "does not fit into memory") from error
    except Exception as error:  # damaged headers raise nearly anything
        raise BadFile(path, f"is no volume that can be read ({_said(error, path)})") from error


def _said(error: Exception, path: Path) -> str:
    """What an error says, without where the file lies, or an object in memory: equal files get equal reports."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    said = " ".join(str(error).split()).replace(str(path), path.name)
    return re.sub(r" at 0x[0-9a-f]+", "", said)[:200] or type(error).__name__
