"""Which image formats are read, and what a file is by its first bytes."""

from __future__ import annotations

import re
from functools import cache
from pathlib import PurePosixPath

READ = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")  # nothing that runs an interpreter, as EPS does

# What counts as an image by its name. The second row is not read, but to be reported rather than passed over.
IMAGE_EXTENSION = re.compile(
    r"\.(jpe?g|jpe|jfif|a?png|webp|bmp|dib|tiff?|gif|p[apgbnf]m|avifs?"
    r"|svg|hei[cf]|jxl|jp2)",
    re.IGNORECASE,
)
PPM_HEADER = re.compile(rb"P[1-6]\s+[0-9#]|P[fF]\s+[0-9]")


@cache
def readable() -> tuple[str, ...]:
    """The formats of `READ` that the installed Pillow decodes, by Pillow's names."""
    from PIL import Image, features

    Image.init()
    missing = {name for name in ("WEBP", "AVIF") if not features.check(name.lower())}
    return tuple(name for name in READ if name in Image.OPEN and name not in missing)


def sniffed(head: bytes) -> str:
    """The image format that a file's first bytes belong to, by Pillow's name, or "" where it is none of `READ`."""
    signatures: tuple[tuple[str, bool], ...] = (
        ("JPEG", head.startswith(b"\xff\xd8\xff")),
        ("PNG", head.startswith(b"\x89PNG\r\n\x1a\n")),
        ("GIF", head.startswith((b"GIF87a", b"GIF89a"))),
        ("WEBP", head.startswith(b"RIFF") and head[8:12] == b"WEBP"),
        ("AVIF", head[4:12] in (b"ftypavif", b"ftypavis")),
        ("TIFF", head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))),
        ("BMP", head.startswith(b"BM") and head[6:10] == b"\0\0\0\0"),
        ("PPM", PPM_HEADER.match(head) is not None),
        ("PAM", head.startswith(b"P7\n")),
    )
    return next((name for name, found in signatures if found and len(head) > 8), "")


def is_image(name: str, head: bytes) -> bool:
    """Whether a file of that name, which begins with these bytes, counts as an image, to be read or to be reported."""
    suffix = PurePosixPath(name).suffix
    if IMAGE_EXTENSION.fullmatch(suffix):
        return True
    found = sniffed(head)
    return bool(found) and (found != "TIFF" or not suffix)  # .nef, .dng, .svs are TIFFs around something else


def foreign(head: bytes) -> str:
    """What a file that is no readable image seems to be, as the end of the sentence "it ..."; "" where unknown."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty"
    if text.startswith((b"<!doctype html", b"<html")):
        return "looks like HTML, not an image"
    if b"<svg" in text:
        return "is an SVG drawing, which is not read"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "is an HEIC image, which is not read"
    if b"JXL " in head[4:8] or head.startswith(b"\xff\x0a"):
        return "is a JPEG XL image, which is not read"
    return ""
