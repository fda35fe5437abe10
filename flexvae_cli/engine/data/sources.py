"""Where images come from: a folder, a file or a built-in set; which are held out; which can be used at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from flexvae_cli.api.readers import HEAD
from flexvae_cli.assets import BUILTIN_SOURCES
from flexvae_cli.engine.data.formats import is_image, readable
from flexvae_cli.engine.data.members import fault_of
from flexvae_cli.engine.data.opening import BadFile, image_size
from flexvae_cli.engine.data.shards import Finds, Headers, is_shard, members
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.errors import DataError, UsageError, did_you_mean, listed
from flexvae_cli.paths import shown

Size = tuple[int, int]
THREADS = 8  # that look at headers: mostly waiting for the disk


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        name: the path below the source, with forward slashes; what identifies the image wherever the source lies.
        path: where to read it; of one in a tar a `Member`.
        label: its class, where a tar names one; else that is its top-level folder.
    """

    name: str
    path: Path
    label: str | None = None


def list_images(source: str, *, where: str = "data.source") -> list[Item]:
    """The images of a source, sorted by name (bytewise), the same on every machine.

    A folder is searched through and through. An image is what has an extension of an image, in any case, or what has
    another extension or none and begins like an image. Hidden files and folders and `__MACOSX` are passed over. Links
    to folders are not followed, links to files only where they stay inside the folder. Tars are folders of their
    members, see `shards.members`.

    Args:
        source: a folder, a tar, an image file, or `builtin:scenery` or `builtin:scenery/val`.
        where: what to call the source in an error.

    Raises:
        UsageError: there is no such built-in set.
        DataError: there is no such path, a folder in it cannot be listed, or there are no images in it.
    """
    hint = f"formats that are read: {', '.join(readable())}, PAM"
    items = list_files(source, finds_image, where=where)
    if not items:
        raise DataError(f"no images in {shown(Path(source))}{links_out(source)}", where=where, hint=hint)
    return items


def links_out(source: str) -> str:
    """What to add where a folder seems to be empty: how many links lead out of it, if any do; they are not followed."""
    root = Path(source)
    top = root.resolve()
    count = 0
    for folder, folders, files in os.walk(root):
        places = (Path(folder, name) for name in (*folders, *files))
        count += sum(place.is_symlink() and not Path(os.path.realpath(place)).is_relative_to(top) for place in places)
    leads = "link in it leads" if count == 1 else "links in it lead"
    return f"; {count:,} {leads} elsewhere and {'is' if count == 1 else 'are'} not followed" if count else ""


def list_files(source: str, finds: Finds, *, where: str = "data.source", headers: Headers | None = None) -> list[Item]:
    """The files of a source that are wanted; of a source that is a file this one, wanted or not. See `list_images`.

    Args:
        source: a folder, a tar, any other file, or a built-in set.
        finds: whether a file counts.
        where: what to call the source in an error.
        headers: of tars that were listed before, and of those that are now; by default they are not kept.

    Raises:
        UsageError: there is no such built-in set.
        DataError: there is no such path, a folder in it cannot be listed, or it has files beside tars of such files.
    """
    root = _builtin(source, where) if source.startswith("builtin:") else Path(source)
    alone = root.is_file()
    if not alone and not root.is_dir():
        kind = "neither a file nor a folder" if root.exists() else "no such folder"
        raise DataError(f"{kind}: {shown(root)}", where=where)
    files: list[Item] = []
    inside: list[Item] = []
    try:
        for item in [Item(root.name, root)] if alone else _walk(root):
            if _counts(item.path, finds):
                files.append(item)
            elif is_shard(item.name):
                found = members(item.name, item.path, finds, headers)
                inside += [Item(each.name, each.path, each.label) for each in found]
            elif alone:
                files.append(item)
    except OSError as error:
        at = error.filename or shown(root)  # what goes wrong inside a file has no name
        raise DataError(f"cannot list {at}: {(error.strerror or '').lower()}", where=where) from error
    first = next((item for item in inside if not fault_of(item.path)), None)
    if files and first:
        what = f"{shown(root)} has files beside tars of such files: {files[0].name} and {first.name}"
        raise DataError(what, where=where, hint="give a folder of either, lest what was unpacked counts twice")
    return sorted(files or inside, key=lambda item: os.fsencode(item.name))


def split(items: Sequence[Item], fraction: float) -> tuple[list[Item], list[Item]]:
    """Hold a fraction of the images out for validation.

    An image is held out where the hash of its name, as a number from 0 to 1, is below `fraction`, whatever other images
    there are: files that are added or removed move none of the others. One image stands in where that would leave a
    side empty, and it alone can move:

    - where no hash is below `fraction`, the image of lowest hash is held out. It returns to training once an image of
      lower hash is added. No image that was trained on is held out by that.
    - where all hashes are below `fraction`, the image of highest hash is trained on. It is held out once an image of
      higher hash is added. So is a single image, which is always trained on.

    Of n images no hash is below `fraction` in (1 - fraction)^n of all cases: at 0.1 that is 35 % of 10 images, 12 % of
    20, 0.5 % of 50. No rule does without stand-ins: of three images two are on the same side, and these two by
    themselves would leave the other side empty.

    Args:
        items: the images of a source.
        fraction: from 0 (nothing is held out) up to, not including, 1.

    Returns:
        The images to train on and those held out, both in the order of `items`; from two images on both have some.
    """
    share = {item.name: seed_of("validation", item.name) / 2**63 for item in items}
    held_out = {name for name, value in share.items() if value < fraction}
    if fraction > 0 and len(share) > 1 and not held_out:
        held_out = {min(share, key=share.__getitem__)}
    elif share and len(held_out) == len(share):
        held_out.remove(max(share, key=share.__getitem__))
    return [i for i in items if i.name not in held_out], [i for i in items if i.name in held_out]


def sizes_of(items: Sequence[Item], *, max_pixels: int, exif: bool) -> list[Size | BadFile]:
    """The (height, width) of every image, upright, from its header, or why it cannot be used."""

    def look(item: Item) -> Size | BadFile:
        try:
            return image_size(item.path, exif=exif, max_pixels=max_pixels)
        except BadFile as bad:
            return bad

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(look, items))


def too_small(path: Path, size: Size | BadFile, least: Size) -> BadFile | None:
    """What is wrong with an image of which at least (height, width) is wanted; None where nothing is."""
    if isinstance(size, BadFile):
        return size
    height, width = size
    if height < least[0] or width < least[1]:
        reason = f"is too small: {height}x{width} pixels (height x width), wanted are {least[0]}x{least[1]} or more"
        return BadFile(path, reason)
    return None


def _builtin(source: str, where: str) -> Path:
    if source not in BUILTIN_SOURCES:
        known = list(BUILTIN_SOURCES)
        guess = did_you_mean(source, known) or f"; there are {listed(known, last='and')}"
        raise UsageError(f"no built-in set '{source}'{guess}", where=where)
    return Path(str(resources.files("flexvae_cli"))) / "assets" / BUILTIN_SOURCES[source]


def _walk(root: Path) -> Iterator[Item]:
    """The files below `root`, in no particular order."""
    top = root.resolve()
    folders = [Item("", root)]
    while folders:
        folder = folders.pop()
        with os.scandir(folder.path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                found = Item(f"{folder.name}/{entry.name}".lstrip("/"), Path(entry.path))
                if entry.is_dir(follow_symlinks=False):
                    folders.append(found)
                elif _stays(entry, top):
                    yield found


def _stays(entry: os.DirEntry[str], top: Path) -> bool:
    """Whether an entry is a regular file, or a link to one inside `top`."""
    try:
        return entry.is_file() and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(top))
    except (OSError, RuntimeError):  # a link to itself
        return False


def _counts(path: Path, finds: Finds) -> bool:
    return finds(path.name, lambda: head_of(path))


def head_of(path: Path) -> bytes:
    """The first bytes of a file, which tell of which kind it is; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def finds_image(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file counts as an image, to be read or to be reported; it is opened where its name does not tell."""
    return is_image(name, b"") or is_image(name, head())
