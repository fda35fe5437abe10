"""An inspection as plain values: what `flexvae inspect --json` prints. Keys are only ever added."""

from __future__ import annotations

from typing import Any

from flexvae_cli.inspection import Inspection, Line, Part


def document(found: Inspection) -> dict[str, Any]:
    """An inspection as plain values, for `--json`."""
    about = found.model.quantized if found.model else {}
    return {
        "target": found.target,
        "kind": found.kind,
        "input": list(found.shape),
        "input_assumed": found.assumed,
        "latent": list(found.latent) if found.latent else None,
        "output": list(found.gives),
        "compression": found.compression,
        "parameters": found.parameters,
        "bytes_fp32": 4 * found.parameters,
        "macs": found.macs,
        "flexvae": found.flexvae,
        "plugins": found.plugins,
        "size_multiple": list(found.multiples) if found.multiples else None,
        "quantized": {k: v for k, v in about.items() if k != "tensors"} or None,
        "parts": [_part_document(part, found) for part in found.parts],
        "warnings": [
            {"text": note.text, "layers": [{"part": part, "key": key} for part, key in note.places]}
            for note in found.notes
        ],
    }


def _part_document(part: Part, found: Inspection) -> dict[str, Any]:
    return {
        "name": part.name,
        "structure": part.structure.name if part.structure else None,
        "input": list(part.trace.takes),
        "output": list(part.trace.gives),
        "parameters": part.trace.parameters,
        "macs": part.trace.macs,
        "rows": [
            {**_line_document(line, found.parameters), "bits": found.bits.get(f"{part.name}.{line.key}")}
            for line in part.lines
        ],
    }


def _line_document(line: Line, parameters: int) -> dict[str, Any]:
    return {
        "key": line.key,
        "code": line.code,
        "layer": line.layer,
        "input": list(line.takes),
        "output": list(line.gives),
        "parameters": line.parameters,
        "share": line.parameters / parameters if parameters else 0.0,
        "macs": line.macs,
        "receptive_field": None if line.reach.everywhere else list(line.reach.field),
        "sees_statistics": line.reach.statistics,
        "measured": line.row is not None and not line.row.ruled,
        "notes": list(line.notes),
    }
