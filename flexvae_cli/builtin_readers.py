"""The readers that come with the tool, declared as any plugin declares its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import Count, Range
from flexvae_cli.api.readers import ReaderSpec, reader

if TYPE_CHECKING:
    from flexvae_cli.api.readers import Reader

Index = Annotated[int, Range(0)]


@reader("images", axes=(2,))
def images() -> Reader:
    """Pictures: JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF and PAM, of 8 or 16 bits or float, known by their content.

    Size, background and orientation have keys of their own in `[data]`.
    """
    from flexvae_cli.engine.data.readers.images import Images

    return Images()


@reader("arrays")
def arrays(
    *,
    key: str | None = None,
    channels: Literal["first", "last"] = "first",
    range: Literal["type", "file"] = "type",
    low: float | None = None,
    high: float | None = None,
) -> Reader:
    """Arrays of numpy: .npy, mapped from disk, and .npz; of any byte order and memory order, never pickled objects.

    Args:
        key: which array of an .npz; by default the only one that has the right number of axes.
        channels: whether the channels are the first axis or the last; an array without that axis has one channel.
        range: what becomes [-1, 1]: all that an unsigned type can hold (float is taken as [-1, 1]), or in each file
            from its least number to its greatest, which the outputs then have too.
        low: the number that becomes -1, instead; numbers below are clipped.
        high: the number that becomes 1; numbers above are clipped.
    """
    from flexvae_cli.engine.data.readers.arrays import Arrays
    from flexvae_cli.engine.data.readers.span import Span

    return Arrays(key, channels, Span(range, low, high))


@reader("audio", axes=(1,))
def audio(
    *,
    rate: Count | None = None,
    resample: bool = False,
    mix: bool = False,
) -> Reader:
    """Sound: WAV, FLAC and OGG; needs `pip install flexvae[audio]`.

    Args:
        rate: samples per second of what the net sees; by default that of most training files.
        resample: convert files of other rates, rather than leave them out.
        mix: convert files of other numbers of channels, to their mean or by repeating one, rather than leave them out.
    """
    from flexvae_cli.engine.data.readers.audio import Audio

    return Audio(rate, resample=resample, mix=mix)


@reader("volumes", axes=(3,))
def volumes(
    *,
    volume: Index | None = None,
    range: Literal["type", "file"] = "type",
    low: float | None = None,
    high: float | None = None,
) -> Reader:
    """Volumes: NIfTI (.nii, .nii.gz) with affine and spacing, and stacks of TIFF; needs `pip install flexvae[volume]`.

    Axes are in the order in which the file has them: those of a NIfTI are the i, j and k of its affine, those of a
    stack page, row and column. The volumes of a 4-D NIfTI are channels.

    Args:
        volume: which one of a 4-D NIfTI to take, from 0; by default all, as channels.
        range: what becomes [-1, 1]: all that an unsigned type can hold (float is taken as [-1, 1]), or in each file
            from its least number to its greatest, which the outputs then have too.
        low: the number that becomes -1, instead; numbers below are clipped.
        high: the number that becomes 1; numbers above are clipped.
    """
    from flexvae_cli.engine.data.readers.span import Span
    from flexvae_cli.engine.data.readers.volumes import Volumes

    return Volumes(volume, Span(range, low, high))


READERS: list[ReaderSpec] = [images, audio, volumes, arrays]
