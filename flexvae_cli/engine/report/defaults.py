"""What somebody decided: the settings that are not the default."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from flexvae_cli.config.settings import Settings

LENGTH = ("max_steps", "epochs")  # one of them has to be given, though neither is required


def not_default(settings: dict[str, Any]) -> dict[str, Any] | None:
    """The tables and keys of resolved settings that have another value than when they are not given.

    None where the settings are those of another release.
    """
    try:
        found = Settings.model_validate_json(json.dumps(settings)).model_dump(mode="json")
        plain = Settings.model_validate_json(json.dumps(_required(found))).model_dump(mode="json")
    except ValidationError:
        return None
    return _differing(found, plain, _required(found))


def _required(settings: dict[str, Any]) -> dict[str, Any]:
    """What must be given."""
    given: dict[str, Any] = {}
    for table, field in Settings.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        required = [key for key in keys if keys[key].is_required() or (table == "train" and key in LENGTH)]
        if required:
            given[table] = {key: settings[table][key] for key in required}
    return given


def _differing(found: dict[str, Any], plain: dict[str, Any], required: dict[str, Any]) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(plain.get(key), dict):
            inner = _differing(value, plain[key], required.get(key, {}))
            different |= {key: inner} if inner else {}
        elif value is not None and (value != plain.get(key) or key in required):
            different[key] = value
    return different
