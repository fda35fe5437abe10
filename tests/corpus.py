"""Odd and bad files of every kind, as collections have them: what is readable, and what is wrong with the rest."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from flexvae_cli.engine.data.deep_png import deep_png_bytes
from flexvae_cli.engine.data.formats import readable
from flexvae_cli.engine.data.pam import pam_bytes

Bad = dict[str, str]  # the name of a file -> words of the reason why it cannot be read

NOISE = np.random.default_rng(0).integers(0, 256, (20, 24, 4)).astype(np.uint8)
PAGE = b"<!doctype html><html>404</html>"


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_claiming(side: int) -> bytes:
    """A small file that says it has side x side pixels."""
    body = struct.pack(">LLBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", body), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
    packed = (struct.pack(">L", len(d)) + k + d + struct.pack(">L", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def upright(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pictures(folder: Path) -> Bad:
    """Pictures; what is hidden, foreign or no file at all is to be passed over without a word."""
    colour, grey = Image.fromarray(NOISE[..., :3]), Image.fromarray(NOISE[..., 0])
    alpha, palette, deep = Image.fromarray(NOISE), colour.convert("P"), NOISE.astype(np.uint16) * 257
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", colour.size)]}
    jpeg, png = saved(colour, "JPEG"), saved(colour, "PNG")
    put(folder, {f"orientation {n}.jpg": saved(colour, "JPEG", exif=upright(n)) for n in range(1, 9)})
    put(
        folder,
        {
            "16 bits.png": saved(Image.fromarray(deep[..., 0]), "PNG"),
            "16 bits.tif": saved(Image.fromarray(deep[..., 0]), "TIFF"),
            "big endian.tif": saved(Image.frombytes("I;16B", grey.size, deep[..., 0].astype(">u2").tobytes()), "TIFF"),
            "float.tif": saved(Image.fromarray(NOISE[..., 0].astype(np.float32) / 255), "TIFF"),
            "deep colour.png": deep_png_bytes(deep[..., :3]),
            "deep.pam": pam_bytes(deep, 65535),
            "cmyk.jpg": saved(colour.convert("CMYK"), "JPEG"),
            "cmyk.tif": saved(colour.convert("CMYK"), "TIFF"),
            "grey.jpg": saved(grey, "JPEG"),
            "grey alpha.png": saved(alpha.convert("LA"), "PNG"),
            "alpha.png": saved(alpha, "PNG"),
            "alpha.webp": saved(alpha, "WEBP"),
            "palette.png": saved(palette, "PNG"),
            "see-through palette.png": saved(palette, "PNG", transparency=3),
            "one bit.png": saved(grey.convert("1"), "PNG"),
            "profile.jpg": saved(colour, "JPEG", icc_profile=profile),
            "frames.gif": saved(colour, "GIF", **frames),
            "frames.webp": saved(colour, "WEBP", **frames),
            "frames.png": saved(colour, "PNG", **frames),
            "frames.tif": saved(colour, "TIFF", **frames),
            "bitmap.bmp": saved(colour, "BMP"),
            "portable.ppm": saved(colour, "PPM"),
            "pixel.png": saved(Image.new("RGB", (1, 1)), "PNG"),
            "wide.png": saved(Image.new("RGB", (30_000, 1)), "PNG"),
            "UPPER.PNG": png,
            "no extension": png,
            "really a png.jpg": png,
            **({"new.avif": saved(colour, "AVIF")} if "AVIF" in readable() else {}),
        },
    )
    put(folder, dict.fromkeys((".hidden.png", "Thumbs.db", ".DS_Store", "__MACOSX/._a.png", "notes.txt"), b"\0\1\2"))
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to("gone.png")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    bad = {
        "32 bits.tif": (saved(Image.fromarray(NOISE[..., 0].astype(np.int32) * 99), "TIFF"), "unknown"),
        "nan.tif": (saved(Image.fromarray(np.full((20, 24), np.nan, np.float32)), "TIFF"), ""),
        "half.jpg": (jpeg[: len(jpeg) // 2], "is truncated"),
        "half.png": (png[: len(png) // 2], "is truncated"),
        "short.png": (png[:-1], "is truncated"),
        "flipped.png": (bytes(flipped), "is damaged"),
        "half.pam": (pam_bytes(deep, 65535)[:500], "is truncated"),
        "empty.jpg": (b"", "is empty"),
        "text.png": (b"just some text", "is not an image"),
        "page.jpg": (PAGE, "looks like HTML"),
        "drawing.svg": (b'<?xml version="1.0"?>\n<svg width="1"/>', "is an SVG drawing"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is an HEIC image"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image"),
        "100 megapixels.png": (png_claiming(10_000), "has 100 megapixels"),
        "400 megapixels.png": (png_claiming(20_000), "has 400 megapixels"),
    }
    put(folder, {name: data for name, (data, _) in bad.items()})
    return {name: reason for name, (_, reason) in bad.items()}


def sounds(folder: Path) -> Bad:
    """Sounds of one channel at 8 kHz, and others."""
    import soundfile

    def sound(kind: str, subtype: str, channels: int = 1, rate: int = 8000, length: int = 400) -> bytes:
        file, x = io.BytesIO(), np.sin(np.arange(length * channels) / 7).reshape(length, channels) / 2
        soundfile.write(file, x, rate, format=kind, subtype=subtype)
        return file.getvalue()

    plain = sound("WAV", "PCM_16")
    subtypes = {"8 bits": "PCM_U8", "24 bits": "PCM_24", "32 bits": "PCM_32", "float": "FLOAT", "double": "DOUBLE"}
    put(folder, {f"{name}.wav": sound("WAV", subtype) for name, subtype in subtypes.items()})
    put(
        folder,
        {
            "16 bits.wav": plain,
            "extended.wav": sound("WAVEX", "PCM_16"),
            "packed.flac": sound("FLAC", "PCM_16"),
            "lossy.ogg": sound("OGG", "VORBIS"),
            "no extension": plain,
            ".hidden.wav": plain,
            "notes.txt": b"no sound",
        },
    )
    flac, ogg = sound("FLAC", "PCM_16", length=9000), sound("OGG", "VORBIS")
    floats = bytearray(sound("WAV", "FLOAT"))
    floats[-4:] = struct.pack("<f", float("nan"))
    bad = {
        "half.wav": (plain[: len(plain) // 2], "is truncated"),
        "half.flac": (flac[: len(flac) // 2], ""),
        "short.ogg": (ogg[:-1], "is truncated"),
        "billion.wav": (plain[:40] + struct.pack("<I", 2_000_000_000) + plain[44:], "is truncated"),
        "silent.wav": (sound("WAV", "PCM_16", length=0), "holds no samples"),
        "nan.wav": (bytes(floats), "1 numbers that are not finite"),
        "other rate.wav": (sound("WAV", "PCM_16", rate=44_100), "44,100 samples per second"),
        "six channels.wav": (sound("WAV", "PCM_16", channels=6), "has 6 channels"),
        "empty.flac": (b"", "is empty"),
        "page.wav": (PAGE, "neither WAV nor FLAC nor OGG"),
        "other.wav": (b"FORM\0\0\0\x04AIFF", "neither WAV nor FLAC nor OGG"),
    }
    put(folder, {name: data for name, (data, _) in bad.items()})
    return {name: reason for name, (_, reason) in bad.items()}


def volumes(folder: Path) -> Bad:
    """Volumes of one channel with numbers from 0 to 119, and others."""
    import nibabel
    import tifffile

    cube = np.arange(120).reshape(4, 5, 6)

    def nifti(numbers: np.ndarray, affine: Any = None) -> bytearray:
        image = nibabel.Nifti1Image(numbers, np.eye(4) if affine is None else affine)
        return bytearray(image.to_bytes())

    def stack(numbers: np.ndarray) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, numbers, photometric="minisblack")
        return file.getvalue()

    def changed(data: bytes, at: int, layout: str, *numbers: float) -> bytes:
        new = bytearray(data)
        struct.pack_into(layout, new, at, *numbers)
        return bytes(new)

    whole, holed = nifti(cube.astype("<i2")), cube.astype("<f4")
    holed[1, 2, 3] = np.nan
    packed = gzip.compress(nifti(np.random.default_rng(0).integers(0, 100, (20, 20, 20)).astype("u1")))
    endless = holed.copy()
    endless[1, 2, 3] = np.inf
    put(
        folder,
        {
            "bytes.nii": nifti(cube.astype("u1")),
            "shorts.nii.gz": gzip.compress(whole),
            "big endian.nii": nibabel.Nifti1Image(
                cube.astype(">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">")
            ).to_bytes(),
            "slope.nii": changed(whole, 112, "<ff", 0.5, 10),
            "mirrored.nii": nifti(cube.astype("<f4"), np.diag([-1.0, -2, 3, 1])),
            "stack.tif": stack(cube.astype("u2")),
            ".hidden.nii": whole,
            "notes.txt": b"no volume",
        },
    )
    bad = {
        "nan.nii": (nifti(holed), "1 numbers that are not finite"),
        "infinite.nii.gz": (gzip.compress(nifti(endless)), "1 numbers that are not finite"),
        "series.nii": (nifti(np.stack([cube, cube], 3).astype("u1")), "has 2 volumes; wanted are 1"),
        "plane.nii": (nifti(cube[0].astype("u1")), "has 2 axes"),
        "half.nii": (whole[: len(whole) // 2], ""),
        "half.nii.gz": (packed[: len(packed) // 2], "is truncated"),
        "claims.nii": (changed(whole, 42, "<hhh", 32_000, 32_000, 1000), "is truncated"),
        "no axis.nii": (changed(whole, 42, "<hhh", 0, 5, 6), ""),
        "no place.nii": (changed(whole, 280, "<f", float("nan")), "has an affine that is not finite"),
        "page.nii": (PAGE, "is no volume that can be read"),
        "plane.tif": (stack(cube[0].astype("u2")), "is no stack of grey pages"),
        "circle.tif": (b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 1, 1, 8), "its pages go round in circles"),
    }
    put(folder, {name: bytes(data) for name, (data, _) in bad.items()})
    return {name: reason for name, (_, reason) in bad.items()}


def arrays(folder: Path) -> Bad:
    """Arrays of one channel with numbers from -1 to 1, and others."""
    numbers = np.linspace(-1, 1, 40, dtype=np.float32)[None]

    def array(x: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.save(file, x, allow_pickle=True)
        return file.getvalue()

    def packed(**members: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)
        return file.getvalue()

    def claiming(shape: str) -> bytes:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)

    put(
        folder,
        {
            "plain.npy": array(numbers),
            "fortran.npy": array(np.asfortranarray(np.repeat(numbers.T, 2, 1)[:, :1].T)),
            "big endian.npy": array(numbers.astype(">f8")),
            "no channel.npy": array(numbers[0]),
            "packed.npz": packed(x=array(numbers), rate=array(np.array(8000))),
            ".hidden.npy": array(numbers),
            "notes.txt": b"no array",
        },
    )
    bad = {
        "objects.npy": (array(np.array([{}], dtype=object)), "pickle refused"),
        "trillion.npy": (claiming("(1, 1000000000000)"), "is truncated: 4,000,000,000,000 bytes"),
        "no length.npy": (claiming("(1, 0)"), "is empty"),
        "complex.npy": (array(numbers.astype(np.complex64)), "not real numbers"),
        "text.npy": (array(np.array(["a"] * 40)), "not real numbers"),
        "nan.npy": (array(np.where(numbers > 0.9, np.nan, numbers)), "not finite"),
        "no range.npy": (array(np.arange(40)[None]), "whose range is not known"),
        "half.npy": (array(numbers)[:-80], "is truncated"),
        "pickle.npy": (pickle.dumps([1, 2]), "neither an .npy nor an .npz"),
        "several.npz": (packed(a=array(numbers), b=array(numbers)), "holds several arrays (a, b)"),
        "half.npz": (packed(a=array(numbers))[:-40], "is damaged"),
        "two channels.npy": (array(np.repeat(numbers, 2, 0)), "has 2 channels; wanted are 1"),
    }
    put(folder, {name: data for name, (data, _) in bad.items()})
    return {name: reason for name, (_, reason) in bad.items()}
