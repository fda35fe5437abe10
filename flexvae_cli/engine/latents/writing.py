"""A whole encode: what is there is looked at, what is missing made, and a manifest says that nothing is any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.inference import image_channels, preparation_of
from flexvae_cli.engine.latents.choosing import Choices
from flexvae_cli.engine.latents.encoding import Encoder, encode_units, error_of
from flexvae_cli.engine.latents.journal import Journal, Record, borne_out, close_journals, read_journals
from flexvae_cli.engine.latents.plan import Planned, Unit, labels_of, measured, units_of
from flexvae_cli.engine.latents.settings import (
    OTHER,
    discard_latents,
    found_records,
    latents_of,
    settings,
    source_of_model,
)
from flexvae_cli.engine.latents.sources import SourceFiles, SourceImages
from flexvae_cli.engine.latents.stock import Stock
from flexvae_cli.engine.manifest import MANIFEST, Failure, LatentImage, Manifest, manifest_bytes
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.engine.reading import seal_of
from flexvae_cli.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.kind import Kind

BYTES = 4  # of a number that is held in memory before it is written


@dataclass
class Encode:
    """An encode, from its plan to its manifest.

    Attributes:
        encoder: the model, and how its latents are written.
        choices: what was asked for.
        items: the images of the source.
        folder: where to write.
        world: the processes that share the work.
        kind: what the items are, as `samples_in` found it; None for images.
        overwrite: nothing that is there is gone on with; it goes once there is something to encode.
        faults: images that cannot be read, as far as is known.
    """

    encoder: Encoder
    choices: Choices
    items: Sequence[Item]
    folder: OutputFolder
    world: World
    kind: Kind | None = None
    overwrite: bool = False
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = self.choices.size
        self.preprocessing = dict(self.encoder.model.description.get("preprocessing", {}))
        if self.kind is not None and not self.kind.pictures:  # not always that of the training
            self.preprocessing |= self.kind.chosen.recorded()
        if size is not None:
            self.preprocessing = {"draft": True, **self.preprocessing, "resize": list(size)}
        self.settings = settings(
            self.choices.layout,
            self.choices.shard_size if self.encoder.layout.many else None,
            self.encoder.model.weights_hash,
            latents_of(self.encoder),
            self.preprocessing,
        )
        self.records = [] if self.overwrite else found_records(self.folder.root, self.settings)

    def plan(self) -> None:
        """Look at all images, and at all that an earlier encode has left; with `overwrite` that is removed.

        Raises:
            DataError: no image can be read, or the processes do not see the same images.
            UsageError: what is there are latents of other images.
        """
        images, faults = measured(self.items, self._size_of)
        self.faults += faults
        self.failed = self.faults
        self._require_images(bool(images))
        row = BYTES * len(self.encoder.values.keys)
        self.units = units_of(images, self.encoder.model.latent_shape, most=self.choices.shard_size, row=row)
        seen = seal_of({"images": [[image.item.name, list(image.size)] for image in images]})
        if len(set(self.world.from_each(seen))) > 1:
            raise DataError("the processes do not see the same images; were some changed meanwhile?")
        self._require_related()
        if self.overwrite and self.world.first:
            discard_latents(self.folder)
        records = borne_out(self.folder.root, self.records)
        self.stock = Stock(self.folder.root, records, images, self.encoder.layout, self.encoder.values.keys)
        self.kept = {unit.key: record for unit in self.units if (record := self._kept(unit)) is not None}
        self._find_places()

    @property
    def reused(self) -> int:
        """How many latents need not be encoded again."""
        return len(self.stock.places)

    def _size_of(self, item: Item) -> Shape:
        if self.kind is not None and not self.kind.pictures:
            return self.kind.size_of(item)
        how = preparation_of(self.encoder.model)
        size = image_size(item.path, **{key: how[key] for key in ("exif", "max_pixels") if key in how})
        return size if self.choices.size is None else self.choices.size

    def _kept(self, unit: Unit) -> Record | None:
        """What the journal says of a unit whose files are in place, as they would be written now."""
        names = [image.item.name for image in unit.images]
        places = [self.stock.places[name] for name in names if name in self.stock.places]
        if len(places) < len(names):
            return None
        if self.encoder.layout.many:
            file = places[0].file
            there = file.path == self.encoder.path(unit, file.shape) and file.count == len(names)
            same = [(image.label, file.path, index) for index, image in enumerate(unit.images)]
            there = there and same == [(place.image.label, place.file.path, place.image.index) for place in places]
        else:
            there = all(place.file.path == self.encoder.names[place.image.name] for place in places)
        if not there:
            return None
        files = {place.file.path: place.file for place in places}
        images = [
            place.image.model_copy(update={"source": place.source, "label": image.label})
            for place, image in zip(places, unit.images, strict=True)
        ]
        return Record(unit=unit.key, files=list(files.values()), images=images, failures=[])

    def run(self, *, workers: int, report: Callable[[Fault], None]) -> Iterator[int]:
        """Encode what is missing; yields how many images of this process are done.

        Raises:
            ModelError, UsageError, DataError: see `encode_units`.
            ResourceError: the disk is full, or the folder cannot be written.
        """
        journal = Journal(self.folder.root, self.settings, self.world.rank)
        self.world.greatest(0)  # all have looked
        if self.world.first:
            self._make_way(journal)
        self.world.greatest(0)  # the way is free
        for fault in self.faults if self.world.first else ():
            report(fault)
        open_units = [unit for unit in self.units if unit.key not in self.kept]
        mine = open_units[self.world.rank :: self.world.size]
        yield from encode_units(
            self.encoder, mine, self.stock, self.folder, journal, self._images, workers=workers, report=report
        )
        self.world.greatest(0)  # all have written

    def _find_places(self) -> None:
        """Which files stay where they are, and which are put aside, since others take their places."""
        self.stays = {file.path for record in self.kept.values() for file in record.files}
        used: dict[str, list[LatentImage]] = {}
        for place in self.stock.places.values():
            used.setdefault(place.file.path, []).append(place.image)
        for path, images in used.items():
            if not self.encoder.layout.many and path == self.encoder.names.get(images[0].name):
                self.stays.add(path)
        self.aside: list[Record] = []
        for path in used.keys() - self.stays:
            file = self.stock.moved(self.stock.files[path])
            images = [image.model_copy(update={"file": file.path}) for image in used[path]]
            self.aside.append(Record(unit="", files=[file], images=images, failures=[]))

    def _images(self, planned: Sequence[Planned]) -> SourceImages | SourceFiles:
        model, items = self.encoder.model, [each.item for each in planned]
        if self.kind is not None and not self.kind.pictures:
            return SourceFiles(items, self.kind.chosen.reader, self.kind.shape, self.kind.most)
        return SourceImages(items, image_channels(model), size=self.choices.size, **preparation_of(model))

    def _make_way(self, journal: Journal) -> None:
        """Keep what is in place, put aside what is used elsewhere, and remove the rest, in an order in which a crash
        at any point leaves no reader with latents that are not those of the manifest, and no file that nobody knows."""
        kept = {file.path for record in self.kept.values() for file in record.files}
        before = [record for record in self.records if any(file.path not in kept for file in record.files)]
        before = [record.model_copy(update={"unit": ""}) for record in before]
        journal.begin([*before, *self.aside, *self.kept.values()])
        self.folder.remove(MANIFEST)
        self.stock.move()
        gone = {file.path for record in before for file in record.files} - self.stays
        for path in gone - {file.path for record in self.aside for file in record.files}:
            self.folder.remove(path)

    def collected(self) -> Manifest:
        """The manifest of all that was written, by all processes; `failed` has then all that could not be read.

        Raises:
            DataError: none of the images could be read.
        """
        done = {record.unit: record for record in read_journals(self.folder.root)[1] if record.unit}
        records = [done[unit.key] for unit in self.units]
        files = [file for record in records for file in record.files]
        images = [image for record in records for image in record.images]
        failures = [Fault(failure.name, failure.reason) for record in records for failure in record.failures]
        self.failed = sorted([*self.faults, *failures], key=lambda fault: os.fsencode(fault.name))
        self._require_images(bool(images))
        return Manifest(
            layout=self.choices.layout,
            shard_size=self.settings["shard_size"],
            model=source_of_model(self.encoder.model),
            latents=latents_of(self.encoder).model_copy(update={"error": error_of(files)}),
            preprocessing=self.preprocessing,
            labels=labels_of(self.items),
            files=files,
            images=images,
            failures=[Failure(name=fault.name, reason=fault.reason) for fault in self.failed],
        )

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, which says that the encode is complete."""
        self.folder.write(MANIFEST, manifest_bytes(manifest))
        close_journals(self.folder.root)

    def _require_related(self) -> None:
        """Refuse a folder of which no image would stay: it is another source's."""
        images = {image.name for record in self.records for image in record.images}
        before = images | {failure.name for record in self.records for failure in record.failures}
        if before and before.isdisjoint(item.name for item in self.items):
            what = f"holds latents of {len(before)} other images, such as {min(before)}, and of none of these"
            raise UsageError(what, where=str(self.folder.root), hint=OTHER)

    def _require_images(self, some: bool) -> None:
        if not some:
            first = [Problem(fault.reason, str(fault.name)) for fault in self.faults[:1]]
            what = f"none of the {len(self.items)} images can be read, the first is {self.items[0].path}"
            raise DataError(what, *first)
