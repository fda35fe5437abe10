"""Config files: TOML, what it extends and `--set` -> checked, typed settings."""

from __future__ import annotations

from flexvae_cli.config.loading import Config, find_config, json_schema, load_config, shipped_configs

__all__ = ["Config", "find_config", "json_schema", "load_config", "shipped_configs"]
