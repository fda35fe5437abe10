"""How many unusable files are an accident, and from where on the data are not what they were taken for."""

from __future__ import annotations

from flexvae_cli.errors import DataError

FEW = 10
"""So many are always put up with: a part of few files is soon reached."""


def require_few_bad(bad: int, files: int, part: float, option: str) -> None:
    """Put up with some unusable files.

    Args:
        bad: how many are known so far.
        files: how many there are, the bad ones included.
        part: of them that may be bad, 0 to 1.
        option: how a user says another part, without its value.

    Raises:
        DataError: there are more than `FEW`, and more than the part.
    """
    if bad > FEW and bad > part * files:
        raise DataError(
            f"{bad:,} of {files:,} files cannot be used, more than {part:.4g} of them",
            hint=f"each is named above with its reason; `{option}{_enough(bad, files)}` goes on without them",
        )


def _enough(bad: int, files: int) -> float:
    """A part that lets this many pass, in hundredths."""
    return min(1.0, -(-100 * bad // files) / 100)
