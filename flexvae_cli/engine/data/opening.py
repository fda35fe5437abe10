"""Open an image file that nobody vouches for: every way in which it can be bad comes out as one `BadFile`."""

from __future__ import annotations

import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from flexvae_cli.api.readers import BadFile
from flexvae_cli.engine.data.formats import foreign, readable, sniffed
from flexvae_cli.engine.data.pam import pam_header
from flexvae_cli.engine.data.tiff_numbers import TiffHeader, tiff_header, tiff_image

__all__ = [
    "TURNS",
    "BadFile",
    "check_pixels",
    "check_png",
    "image_size",
    "opened",
    "orientation",
    "png_chunks",
    "quiet_pillow",
    "upright_size",
]

IMAGE_WIDTH, IMAGE_LENGTH = 256, 257  # TIFF tags
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The Pillow image in `path`, its header read and its size checked, its pixels as a rule not yet decoded.

    Whatever Pillow raises inside the `with` block is the file's fault as well: damage often shows only in decoding.

    Raises:
        BadFile: the file is missing, is not a regular file (a FIFO or device is never opened), is not an image of a
            format that is read, is damaged, or has more than `max_pixels` pixels.
    """
    head, tiff = b"", None
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is not a regular file")
        with quiet_pillow(), path.open("rb") as file:
            head = file.read(512)
            tiff = tiff_header(file)
            if tiff is not None and tiff.misread and not tiff.ours:
                raise BadFile(path, tiff.refusal)
            if tiff is not None and tiff.ours:
                if not tiff.whole:
                    raise BadFile(path, "is truncated")
                check_pixels(path, tiff.width * tiff.height, max_pixels)
                image = tiff_image(file, tiff)
                yield image.transpose(TURNS[tiff.turn]) if tiff.turn in TURNS else image
                return
            file.seek(0)
            with Image.open(file, formats=readable()) as image:
                check_pixels(path, image.width * image.height, max_pixels)
                yield image
    except BadFile:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise BadFile(path, _reason(error, head, tiff)) from error


def image_size(path: Path, *, exif: bool = True, max_pixels: int = 64_000_000) -> tuple[int, int]:
    """The (height, width) of an image in pixels, from its header alone, as `read_image` would return it.

    Raises:
        BadFile: see `opened`.
    """
    pam = pam_header(path)
    if pam is not None:
        check_pixels(path, pam.height * pam.width, max_pixels)
        return pam.height, pam.width
    tiff = _own_tiff(path)
    if tiff is not None:
        check_pixels(path, tiff.height * tiff.width, max_pixels)
        return tiff.size
    with opened(path, max_pixels) as image:
        return upright_size(image, orientation(image, exif=exif))


def _own_tiff(path: Path) -> TiffHeader | None:
    """The header of a TIFF that is read without Pillow; None of any other file, and where it cannot be opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            tiff = tiff_header(file)
    except OSError:
        return None
    return tiff if tiff is not None and tiff.ours else None


def orientation(image: Image.Image, *, exif: bool = True) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 is upright, from 5 on height and width change places.

    The orientation tag of a TIFF belongs to the format: Pillow always applies it on loading, so it counts as 1 here.
    """
    if not exif or image.format == "TIFF":
        return 1
    try:  # the base class's method, since that of PNG decodes the whole image
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF in a sound photograph is common and no reason to lose it
        return 1
    return value if value in range(1, 9) else 1


def upright_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """The (height, width) of an opened image after turning it upright from orientation `turn`."""
    width, height = image.size
    tags = getattr(image, "tag_v2", None)
    if tags is not None:  # versions of Pillow differ in whether `size` of a TIFF is upright before loading
        width, height = tags[IMAGE_WIDTH], tags[IMAGE_LENGTH]
        turn = tags.get(ExifTags.Base.Orientation, 1)
    return (width, height) if turn in (5, 6, 7, 8) else (height, width)


def check_pixels(path: Path, pixels: int, max_pixels: int, has: str = "has") -> None:
    """Raise `BadFile` where an image has more than `max_pixels` pixels."""
    if pixels > max_pixels:
        raise BadFile(
            path, f"{has} {round(pixels / 1e6, 2):g} megapixels; data.max_pixels allows {round(max_pixels / 1e6, 2):g}"
        )


def png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG file up to its last, each its kind and its body, with every checksum checked.

    Raises:
        BadFile: a checksum is wrong or the file ends early.
    """
    with path.open("rb") as file:
        file.seek(8)
        kind = b""
        while kind != b"IEND":
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            body, checksum = file.read(length), file.read(4)
            if len(checksum) < 4:
                raise BadFile(path, "is truncated")
            if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
                raise BadFile(path, "is damaged (wrong checksum)")
            yield kind, body


def check_png(path: Path) -> bytes:
    """Check every checksum of a PNG file; Pillow skips those of the pixel data, and what stands behind it.

    Returns:
        The 13 bytes of its header.

    Raises:
        BadFile: a checksum is wrong, the file ends early or has no header.
    """
    header = b""
    for kind, body in png_chunks(path):
        header = header or body * (kind == b"IHDR")
    if len(header) != 13:
        raise BadFile(path, "is damaged (no header)")
    return header


def _reason(error: Exception, head: bytes, tiff: TiffHeader | None) -> str:
    """Why a file cannot be read, in a person's words."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be opened: {(error.strerror or message).lower()}"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, UnidentifiedImageError):
        if tiff is not None and tiff.whole:
            return tiff.refusal
        format_name = sniffed(head)
        if format_name and format_name not in readable():
            return f"is {format_name}, which the installed Pillow does not read"
        if format_name:
            return f"is a damaged or truncated {format_name} file"
        return foreign(head) or f"is not an image ({', '.join(readable())} are read)"
    if isinstance(error, EOFError) or "truncated" in message.lower():
        return "is truncated"
    return f"is damaged ({message or type(error).__name__})"


class _QuietPillow:
    """Pillow without warnings and without a pixel limit of its own, for as long as any thread is inside.

    Both are settings of the whole process and images are read in threads, so the first one in sets them and the last
    one out puts them back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.stack = ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self.stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
                Image.MAX_IMAGE_PIXELS = None  # `check_pixels` stands in
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.stack.close()


_quiet_pillow = _QuietPillow()


def quiet_pillow() -> _QuietPillow:
    """A context in which Pillow neither warns nor has a pixel limit of its own."""
    return _quiet_pillow
