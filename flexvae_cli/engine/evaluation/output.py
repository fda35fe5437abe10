"""Where the result of an evaluation goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flexvae_cli.engine.evaluation.result import CSV_NAME, JSON_NAME
from flexvae_cli.engine.naming import OutputFolder, open_output
from flexvae_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The two files of a result.

    Attributes:
        folder: that they lie in.
        json, csv: their names.
        whole_folder: whether the folder is the result's own, so that the record of bad files has a place in it.
    """

    folder: OutputFolder
    json: str
    csv: str
    whole_folder: bool


def open_results(output: Path, inputs: Iterable[Path], *, overwrite: bool) -> ResultFiles:
    """Where to write, checked; nothing is created yet.

    Args:
        output: a folder, or a file that ends in .json or .csv, which gets the other one beside it.
        inputs: what is measured; the output may not lie in it.
        overwrite: whether what is there may be replaced.

    Raises:
        UsageError: it may not be written to.
    """
    if output.suffix.lower() not in (".json", ".csv") or output.is_dir():
        return ResultFiles(open_output(output, inputs, overwrite=overwrite), JSON_NAME, CSV_NAME, whole_folder=True)
    folder = output.parent.resolve()
    for path in inputs:
        if folder.is_relative_to(path.resolve()):
            raise UsageError(
                f"the output must not lie in the input {path}", where=str(output), hint="choose another place"
            )
    json, csv = f"{output.stem}.json", f"{output.stem}.csv"
    there = [name for name in (json, csv) if (folder / name).exists()]
    if there and not overwrite:
        raise UsageError(
            "is there already", where=str(output.with_name(there[0])), hint="choose another name, or add --overwrite"
        )
    return ResultFiles(OutputFolder(folder), json, csv, whole_folder=False)
