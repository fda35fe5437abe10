"""Images on their way to latents on disk, unit by unit, by one process or by several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from flexvae_cli.api.trace import text
from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.images import to_tensor
from flexvae_cli.engine.data.loader import whole_images
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.inference import BATCH_PIXELS, BATCH_SIZE, Sample, encoded_batch, runs
from flexvae_cli.engine.latents.containers import Kept, Layout
from flexvae_cli.engine.latents.journal import Journal, Record
from flexvae_cli.engine.latents.plan import Planned, Unit
from flexvae_cli.engine.latents.sources import Read, SourceFiles, SourceImages
from flexvae_cli.engine.latents.stock import Stock
from flexvae_cli.engine.latents.values import FLIP, INDICES, Stored, Values
from flexvae_cli.engine.manifest import Failure, LatentFile, LatentImage, StoredError
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.engine.precision import Precision
from flexvae_cli.errors import ModelError

if TYPE_CHECKING:
    from flexvae_cli.engine.manifest import ImageSource
    from flexvae_cli.engine.model import Model

AHEAD = 2  # batches that the workers read in advance


@dataclass(frozen=True, slots=True)
class New:
    """What the net made of an image, and what its file held."""

    stored: Stored
    source: ImageSource | None


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model, and how its latents are written.

    Attributes:
        model: what encodes.
        values: which numbers are stored, and how.
        layout: in which files.
        names: the path of the file of each image, where it has one of its own.
        about: what every file says of itself.
        precision: how the net computes.
        batch_size: most images of a batch.
    """

    model: Model
    values: Values
    layout: Layout
    names: dict[str, str]
    about: dict[str, Any]
    precision: Precision
    batch_size: int = BATCH_SIZE

    def encode(self, samples: Sequence[Sample]) -> list[Stored]:
        """What is written of samples of one padded size.

        Raises:
            ModelError: the model gives latents that are not finite.
        """
        names = [sample.name for sample in samples]
        try:
            stored = self._stored([sample.x for sample in samples], names, "")
            if self.values.flip:
                mirrored = self._stored([sample.x.flip(-1) for sample in samples], names, FLIP)
                stored = [_together(*both) for both in zip(stored, mirrored, strict=True)]
        except ModelError as error:
            raise ModelError(error.problems[0].what, where=str(self.model.path)) from error
        return stored

    def _stored(self, x: Sequence[torch.Tensor], names: Sequence[str], flip: str) -> list[Stored]:
        with self.precision.autocast():
            encoded = encoded_batch(self.model, x)
        return self.values.store(encoded, names, flip)

    def path(self, unit: Unit, shape: Sequence[int]) -> str:
        """The file of a unit whose latents, or indices, have a shape."""
        return f"{text(tuple(shape))}/{self.layout.path.format(unit.number)}"


def _together(straight: Stored, mirrored: Stored) -> Stored:
    tensors = {**straight.tensors, **mirrored.tensors}
    squares, peak = straight.squares + mirrored.squares, max(straight.peak, mirrored.peak)
    return Stored(tensors, straight.shape, squares, peak, straight.numbers + mirrored.numbers)


def encode_units(
    encoder: Encoder,
    units: Sequence[Unit],
    stock: Stock,
    folder: OutputFolder,
    journal: Journal,
    dataset: Callable[[Sequence[Planned]], SourceImages | SourceFiles],
    *,
    workers: int,
    report: Callable[[Fault], None],
) -> Iterator[int]:
    """Encode units one after the other and write each once it is complete; yields how many images are done.

    Args:
        encoder: the model, and how its latents are written.
        units: those of this process that are not there yet.
        stock: latents that need not be encoded again.
        folder: where to write.
        journal: told of every unit.
        dataset: reads images.
        workers: most processes that read.
        report: told of every image that cannot be read.

    Raises:
        ModelError: the model gives latents that are not finite.
        UsageError: the type has no room for them.
        DataError: a worker died, twice.
    """
    todo = [image for unit in units for image in unit.images if image.item.name not in stock.places]
    pixels = max((math.prod(image.size) for image in todo), default=1)
    ahead = max(2, min(AHEAD * encoder.batch_size, AHEAD * BATCH_PIXELS // pixels))
    read = whole_images(dataset(todo), workers=min(workers, len(todo) // 4), ahead=ahead)
    done = 0
    for unit in units:
        missing = {image.item.name: image for image in unit.images if image.item.name not in stock.places}
        sources: dict[str, ImageSource | None] = {}
        faults: list[Fault] = []
        samples = _samples(islice(read, len(missing)), missing, sources, faults)
        new: dict[str, New] = {}
        for run in runs(samples, lambda sample: encoder.model.net.fitting(sample.size), encoder.batch_size):
            for sample, stored in zip(run, encoder.encode(run), strict=True):
                new[sample.name] = New(stored, sources[sample.name])
            yield done + len(new) + len(faults)
        for fault in faults:
            report(fault)
        done += len(unit.images)
        journal.add(_written(encoder, unit, stock, folder, new, faults))
        yield done


def _samples(
    read: Iterator[tuple[Read, Any]],
    planned: dict[str, Planned],
    sources: dict[str, ImageSource | None],
    faults: list[Fault],
) -> Iterator[Sample]:
    """What can be read of images; notes what their files held, and what is wrong with the others."""
    for found, array in read:
        if isinstance(array, BadFile):
            faults.append(Fault(found.name, array.reason))
            continue
        x = torch.from_numpy(array) if found.ready else to_tensor(array)
        if tuple(x.shape[1:]) != tuple(planned[found.name].size):
            faults.append(Fault(found.name, "was changed while it was encoded"))
        else:
            sources[found.name] = found.source
            yield Sample(found.name, x)


def _written(
    encoder: Encoder, unit: Unit, stock: Stock, folder: OutputFolder, new: dict[str, New], faults: Sequence[Fault]
) -> Record:
    """Write the latents of a unit, those that are there already among them; returns what the journal says of it."""
    there = [image for image in unit.images if image.item.name in new or image.item.name in stock.places]
    groups = [there] if encoder.layout.many else [[image] for image in there]
    files: list[LatentFile] = []
    images: list[LatentImage] = []
    for group in filter(None, groups):
        place = stock.places.get(group[0].item.name)
        if not encoder.layout.many and place and place.file.path == encoder.names[group[0].item.name]:
            file = place.file
        else:
            file = _write(encoder, unit, stock, folder, new, group)
        files.append(file)
        for index, image in enumerate(group):
            name = image.item.name
            source = new[name].source if name in new else stock.places[name].source
            entry = LatentImage(
                name=name, file=file.path, index=index, size=image.size, label=image.label, source=source
            )
            images.append(entry)
    failures = [Failure(name=fault.name, reason=fault.reason) for fault in faults]
    return Record(unit=unit.key, files=files, images=images, failures=failures)


def _write(
    encoder: Encoder, unit: Unit, stock: Stock, folder: OutputFolder, new: dict[str, New], group: Sequence[Planned]
) -> LatentFile:
    """Write a file."""
    names = [image.item.name for image in group]
    rows = [
        Kept(name, image.size, image.label, new[name].stored.tensors if name in new else stock.row(name))
        for name, image in zip(names, group, strict=True)
    ]
    first = names[0]
    shape = new[first].stored.shape if first in new else tuple(stock.places[first].file.shape)
    path = encoder.path(unit, shape) if encoder.layout.many else encoder.names[first]
    digest = folder.write(path, encoder.layout.pack(rows, encoder.about))
    return LatentFile(
        path=path,
        sha256=digest.sha256,
        bytes=digest.bytes,
        count=len(rows),
        shape=shape,
        error=_error(encoder.values, rows, [new.get(name) for name in names], stock),
    )


def _error(values: Values, rows: Sequence[Kept], new: Sequence[New | None], stock: Stock) -> StoredError | None:
    """What rounding cost in a file; of a latent that is used again, what it cost in the file that it was in."""
    if values.dtype == torch.float32 or values.value == INDICES:
        return None
    squares = peak = 0.0
    numbers = 0
    for row, made in zip(rows, new, strict=True):
        before = None if made is not None else stock.places[row.name].file.error
        count = sum(tensor.numel() for key, tensor in row.tensors.items() if tensor.dtype == values.dtype)
        numbers += count
        if made is not None:
            squares, peak = squares + made.stored.squares, max(peak, made.stored.peak)
        elif before is not None:
            squares, peak = squares + count * before.rms**2, max(peak, before.max)
    return StoredError(rms=(squares / max(1, numbers)) ** 0.5, max=peak)


def error_of(files: Sequence[LatentFile]) -> StoredError | None:
    """What rounding cost in all files together."""
    known = [(file.error, file.count * math.prod(file.shape)) for file in files if file.error is not None]
    if not known:
        return None
    squares, numbers = sum(error.rms**2 * count for error, count in known), sum(count for _, count in known)
    return StoredError(rms=(squares / numbers) ** 0.5, max=max(error.max for error, _ in known))
