"""The readers that come with the tool, declared as any plugin declares its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import Count, Range
from flexvae_cli.api.readers import ReaderSpec, reader

if TYPE_CHECKING:
    from flexvae_cli.api.readers import Reader

Index = Annotated[int, Range(0)]


@reader("images", axes=(2,))
def images(*, range: Literal["type", "file"] = "type", low: float | None = None, high: float | None = None) -> Reader:
    """Pictures: JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF and PAM, of 8 or 16 bits or float, known by their content.

    Size, background and orientation have keys of their own in `[data]`. A range is for numbers that state none, grey
    floats and whole numbers of 32 bits; TIFFs then come out as TIFFs of the same numbers.

    Args:
        range: what becomes [-1, 1] of such numbers: floats from 0 to 1 and no whole numbers, or in each file from its
            least number to its greatest, which the outputs then have too.
        low: the number that becomes -1, instead; numbers below are clipped.
        high: the number that becomes 1; numbers above are clipped.
    """
    from flexvae_cli.engine.data.readers.images import Images
    from flexvae_cli.engine.data.readers.span import Span

    return Images(Span(range, low, high))


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


@reader("latents", mirrors=False)
def latents(*, draw: bool = True, scaling: Literal["normalized", "raw"] = "normalized") -> Reader:
    """Latents that `flexvae encode` wrote, in any layout, for an autoencoder of latents; `source` is their folder.

    The net sees the numbers as they are: those beyond -1 and 1 are not clipped. Outputs are .safetensors files. Latents
    are never mirrored, since a mirrored latent is not that of a mirrored image.

    Args:
        draw: train on mean + deviation * noise where the folder has both, with noise of the run's seed that is another
            one in every epoch; validation and outputs are of means.
        scaling: with a mean of 0 and a deviation of 1 in every channel, by the statistics that the folder records, or
            as the decoder takes them.
    """
    from flexvae_cli.engine.data.readers.latents import Latents

    return Latents(scaling, draw=draw)


READERS: list[ReaderSpec] = [images, audio, volumes, arrays, latents]
