"""TIFFs that Pillow does not read, or reads wrong: uncompressed ones are read here, of others it is told what they are.

Of planes that are not compressed Pillow reads 8 bits alone right. It knows neither grey of 16 bits with opacity, nor
floats of 16 and 64 bits. See TIFF 6.0 (Aldus, 1992), and BigTIFF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from flexvae_cli.engine.data.tiff import BLACK_IS_ZERO, FORMATS, RGB
from flexvae_cli.engine.data.tiff_pages import KINDS

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266  # tags
STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
TILES, TILE_BYTES, EXTRA, FORMAT, PROFILE = 324, 325, 338, 339, 34675
DEFAULTS = {BITS: 1, COMPRESSION: 1, FILL_ORDER: 1, ORIENTATION: 1, SAMPLES: 1, ROWS: 1 << 31, PLANAR: 1, FORMAT: 1}
WANTED = {*DEFAULTS, WIDTH, LENGTH, PHOTOMETRIC, STRIPS, STRIP_BYTES, TILES, TILE_BYTES, EXTRA, PROFILE}
BYTES = {1: 1, 3: 2, 4: 4, 7: 1, 16: 8}  # type of a tag's numbers -> size of each
PLANES, PREMULTIPLIED, OPACITY = 2, 1, 2
Tags = dict[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """What is known of the pixels of a TIFF.

    Attributes:
        height, width, channels: as they are stored.
        dtype: of the numbers, in the file's order of bytes.
        photometric: what the first channels are.
        extra: what the others are: opacity, opacity that colours are multiplied by, or something else.
        compressed: whether they are.
        planes: whether each channel lies by itself.
        rows: of a strip, but for the last of a plane.
        strips: where each begins; none where there are tiles.
        turn: the orientation, 1 to 8.
        profile: of the colours.
        whole: whether the file has all the pixels that it says it has.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype
    photometric: int
    extra: tuple[int, ...]
    compressed: bool
    planes: bool
    rows: int
    strips: tuple[int, ...]
    turn: int
    profile: bytes
    whole: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return (self.width, self.height) if self.turn >= 5 else (self.height, self.width)

    @property
    def misread(self) -> bool:
        """Whether Pillow opens it and gives other numbers, or none."""
        deep = self.dtype.itemsize > 1 or self.extra[:1] not in ((), (OPACITY,))
        return self.planes and self.channels > 1 and not self.compressed and deep

    @property
    def ours(self) -> bool:
        """Whether it is to be read here."""
        whole = self.dtype.kind == "u" and self.dtype.itemsize <= 2
        colour = whole and self.misread and self.photometric == RGB and self.channels in (3, 4)
        grey = self.photometric == BLACK_IS_ZERO
        with_opacity = whole and grey and self.channels == 2 and (self.misread or self.dtype.itemsize == 2)
        floats = self.dtype.kind == "f" and self.dtype.itemsize != 4 and grey and self.channels == 1
        return bool(self.strips) and not self.compressed and (colour or with_opacity or floats)

    def __str__(self) -> str:
        many = f"{self.channels} channels" if self.channels > 1 else "1 channel"
        how = ", compressed" * self.compressed + ", plane by plane" * (self.planes and self.channels > 1)
        return f"a TIFF of {many} of {self.dtype.name}{how}{', in tiles' * (not self.strips)}"

    @property
    def refusal(self) -> str:
        """Why it is not read where nobody reads it, and what to do."""
        picture = self.dtype.kind == "u" and self.dtype.itemsize <= 2 and self.channels <= 4
        hint = "save it as PNG" if picture else "store its numbers as .npy"
        return f"is {self}, a kind that is not read; {hint}"


def tiff_header(file: BinaryIO) -> TiffHeader | None:
    """The header of a TIFF of numbers of whole bytes; None where it is none, or lacks what every TIFF says."""
    size = file.seek(0, 2)
    tags, order = _tags(file, size)

    def first(tag: int) -> int:
        return tags.get(tag, (DEFAULTS.get(tag, 0),))[0]

    height, width, channels, bits = (first(tag) for tag in (LENGTH, WIDTH, SAMPLES, BITS))
    kinds = {number: letter for letter, number in FORMATS.items()}
    name = f"{order}{kinds.get(first(FORMAT))}{bits // 8}"
    places, lengths = (TILES, TILE_BYTES) if TILES in tags else (STRIPS, STRIP_BYTES)
    ends = [start + n for start, n in zip(tags.get(places, ()), tags.get(lengths, ()), strict=False)]
    sound = min(height, width, channels, first(ROWS)) > 0 and ends and len(set(tags.get(BITS, ()))) <= 1
    known = name[1:] in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8") and bits % 8 == 0
    if not (sound and known) or len(set(tags.get(FORMAT, ()))) > 1 or first(FILL_ORDER) != 1:
        return None
    rows, planes, compressed = min(first(ROWS), height), first(PLANAR) == PLANES, first(COMPRESSION) != 1
    strips = () if TILES in tags else tags[STRIPS]
    row = width * (1 if planes else channels) * bits // 8
    whole = max(ends) <= size and (
        compressed or not strips or _holds(strips, planes * channels or 1, height, rows, row, size)
    )
    return TiffHeader(
        height=height,
        width=width,
        channels=channels,
        dtype=np.dtype(name),
        photometric=first(PHOTOMETRIC) if PHOTOMETRIC in tags else -1,
        extra=tags.get(EXTRA, ()),
        compressed=compressed,
        planes=planes,
        rows=rows,
        strips=strips,
        turn=first(ORIENTATION) if first(ORIENTATION) in range(1, 9) else 1,
        profile=bytes(tags.get(PROFILE, ())),
        whole=whole,
    )


def tiff_image(file: BinaryIO, header: TiffHeader) -> Image.Image:
    """The pixels of a file that is `ours`, as it stores them: of 8 bits, or as float32."""
    pixels = _numbers(file, header)  # (h, w, c)
    if header.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 has no room for is not finite, and refused as such
            picture = Image.fromarray(pixels[..., 0].astype(np.float32))
            picture.format = "TIFF"
            return picture
    levels = (pixels >> 8 if header.dtype.itemsize == 2 else pixels).astype(np.uint8)  # as Pillow takes 16 bits
    meaning = header.extra[0] if header.extra else 0
    mode = {2: "L", 3: "RGB", 4: "RGB"}[header.channels]
    mode += {OPACITY: "A", PREMULTIPLIED: "a"}.get(meaning, "") if header.channels in (2, 4) else ""
    picture = Image.frombytes(mode, (header.width, header.height), levels[..., : len(mode)].tobytes())
    if mode.endswith("a"):
        picture = picture.convert(mode.upper())
    picture.format = "TIFF"
    if header.profile:
        picture.info["icc_profile"] = header.profile
    return picture


def _holds(strips: tuple[int, ...], planes: int, height: int, rows: int, row: int, size: int) -> bool:
    """Whether a file of so many bytes has room for all strips, of rows of so many bytes each, and for all together."""
    if planes * height * row > size or len(strips) != planes * -(-height // rows):  # before any list is made of them
        return False
    each = [min(rows, height - first) for first in range(0, height, rows)] * planes
    return all(start + n * row <= size for start, n in zip(strips, each, strict=True))


def _numbers(file: BinaryIO, header: TiffHeader) -> np.ndarray:
    """(h, w, c) as they are stored."""
    planes, depth = (header.channels, 1) if header.planes else (1, header.channels)
    pixels = np.empty((planes, header.height, header.width, depth), header.dtype)
    starts = iter(header.strips)
    for plane in pixels:
        for row in range(0, header.height, header.rows):
            strip = plane[row : row + header.rows]
            file.seek(next(starts))
            strip[...] = np.frombuffer(file.read(strip.nbytes), header.dtype).reshape(strip.shape)
    return np.moveaxis(pixels, 0, -1).reshape(header.height, header.width, header.channels)


def _tags(file: BinaryIO, size: int) -> tuple[Tags, str]:
    """The whole numbers of the first page, tag by tag, and the order of their bytes; no tags where it is no TIFF."""
    file.seek(0)
    magic = file.read(2)
    order: Literal["little", "big"] = "big" if magic == b"MM" else "little"
    sign = ">" if order == "big" else "<"

    def numbers(at: int, each: int, count: int = 1) -> tuple[int, ...]:
        """So many of a size; none where the file ends before."""
        if at + each * count > size:
            return ()
        file.seek(at)
        return tuple(np.frombuffer(file.read(each * count), f"{sign}u{each}").tolist())

    kind = KINDS.get(sum(numbers(2, 2))) if magic in (b"II", b"MM") else None
    if kind is None:
        return {}, sign
    page = sum(numbers(kind.place, kind.place))
    tags: Tags = {}
    begin = page + kind.entries
    for at in range(begin, min(begin + sum(numbers(page, kind.entries)) * kind.tag, size), kind.tag):
        tag, of = (*numbers(at, 2, 2), 0, 0)[:2]
        count = sum(numbers(at + 4, kind.place))
        value = at + 4 + kind.place
        if tag in WANTED and of in BYTES and count:
            inside = BYTES[of] * count <= kind.place
            tags[tag] = numbers(value if inside else sum(numbers(value, kind.place)), BYTES[of], count)
    return {tag: values for tag, values in tags.items() if values}, sign
