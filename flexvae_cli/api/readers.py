"""A reader gives the samples of a kind of file, and writes files of that kind; it describes itself as a layer does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli.api.spec import Spec, described
from flexvae_cli.api.trace import Shape

if TYPE_CHECKING:
    import numpy as np

HEAD = 512  # bytes that `Reader.finds` is given, where there are as many

About = Mapping[str, Any]
"""What a file says beside its numbers, as JSON values: rate, spacing, affine, type. It goes where the sample goes."""


class BadFile(Exception):  # noqa: N818 - it names the file, and most often travels as a value
    """A file that cannot serve as a sample; it costs one line of a report, never the run.

    Attributes:
        path: the file.
        reason: what is wrong, as the end of a sentence that begins with the file: "is truncated". What a damaged file
            has left in it that cannot be printed is replaced.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # the arguments as they are: a data worker pickles this
        self.path = path
        self.reason = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in reason)

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its numbers are read.

    Attributes:
        shape: (c, *space) of what `Reader.read` will give.
        rate: samples per second, where the axis is time.
    """

    shape: Shape
    rate: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers of a file.

    Attributes:
        data: (*space, c), of any real type; may be mapped from disk.
        low, high: the numbers that become -1 and 1; those beyond are clipped.
        about: what `Reader.write` takes to make a file of the same kind.
        deviation: where `data` are the means of a distribution, the standard deviation of each: training draws from
            it, anew in every epoch; all else takes the means.
        clipped: whether numbers beyond `low` and `high` are; without it they become less than -1 and more than 1.
    """

    data: np.ndarray
    low: float
    high: float
    about: About = field(default_factory=dict)
    deviation: np.ndarray | None = None
    clipped: bool = True


def file_of(path: Path) -> Path:
    """The file that a sample lies in: FILE of the `FILE/SAMPLE` that `Reader.listed` gives, or the path itself."""
    return path.parent if path.parent.is_file() and not path.is_file() else path


class Reader(ABC):
    """Files of one kind. It goes to data workers, so it can be pickled; files stay closed between calls."""

    @abstractmethod
    def finds(self, name: str, head: bytes) -> bool:
        """Whether a file of that name, which begins with these bytes (512 at most), is one to read or to report."""

    def listed(self, source: Path) -> Sequence[tuple[str, Path]] | None:
        """The samples of a source whose files hold many each: names, no two alike, and paths for `header` and `read`.

        A path is `FILE/SAMPLE`, where FILE holds the sample: see `file_of`.
        None, as by default, where each file that `finds` wants is a sample.
        """
        del source
        return None

    @abstractmethod
    def header(self, path: Path, like: Shape) -> Header:
        """Look at a file without reading its numbers.

        Args:
            path: the file.
            like: (c, *space) of a training sample; channels and number of axes are wanted, sizes are not.

        Raises:
            BadFile: it cannot be read, or cannot be made to have such channels and axes.
        """

    @abstractmethod
    def read(self, path: Path, like: Shape) -> Reading:
        """The numbers of a file, whole; see `header`.

        Raises:
            BadFile: it cannot be read; no other exception, whatever the file holds.
        """

    @abstractmethod
    def suffix(self, name: str) -> str:
        """How the output for a file of that name ends, as in `.wav`; for `""` how any output does."""

    @abstractmethod
    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:
        """A file of samples.

        Args:
            x: float32 (c, *space) in [-1, 1].
            about: of the file that the samples come from; empty where they come from none.
            suffix: what `suffix` said.
        """

    def check(self, about: About, shape: Shape, suffix: str) -> None:
        """Refuse what `write` can do nothing with; `about` may come from a file that nobody vouches for.

        Args:
            about: what `write` will be given.
            shape: (c, *space) of the samples.
            suffix: what `suffix` said.

        Raises:
            Exception: of any kind, says what is wrong; here, whatever `write` raises on a sample of one position.
        """
        import numpy as np

        self.write(np.zeros((shape[0], *(1 for _ in shape[1:])), np.float32), about, suffix)

    def settled(self, headers: list[Header]) -> Mapping[str, Any]:
        """Parameters that the training files decide where the config leaves them open: name -> value."""
        del headers
        return {}


@dataclass(frozen=True)
class ReaderSpec(Spec):
    """A spec whose product is a `Reader`.

    Attributes:
        axes: the numbers of spatial axes that its samples can have.
        mirrors: whether samples of two axes may be mirrored left to right.
    """

    axes: tuple[int, ...] = (1, 2, 3)
    mirrors: bool = True

    @property
    def usage(self) -> str:
        """What switches it on; its parameters are further keys of that table."""
        return f'[data] reader = "{self.name}"'


def reader(
    name: str, *, axes: tuple[int, ...] = (1, 2, 3), mirrors: bool = True
) -> Callable[[Callable[..., Any]], ReaderSpec]:
    """Declare a reader: its factory's parameters are the further keys of `[data]` where `reader` names it.

    Args:
        name: the name in `[data] reader`: letters and digits, begins with a letter, at most 32.
        axes: the numbers of spatial axes that its samples can have: 1 for signals, 2 for images, 3 for volumes.
        mirrors: whether samples of two axes may be mirrored left to right, as `data.flip` has it.
    """

    def declare(factory: Callable[..., Any]) -> ReaderSpec:
        return ReaderSpec(**described("reader", name, factory), axes=axes, mirrors=mirrors)

    return declare
