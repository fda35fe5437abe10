"""What other commands take from a config: `[infer]`, `[encode]`, `[mem]` and `[plugins]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flexvae_cli.config.settings.values import AnyPath, Bytes, Source, Table


class InferTable(Table):
    """Defaults of `flexvae infer`."""

    input: Source | None = Field(None, description="an image or a folder of images, or `builtin:scenery/val`")
    output: AnyPath | None = Field(None, description="the folder that the reconstructions go to")


class EncodeTable(Table):
    """Defaults of `flexvae encode`."""

    input: Source | None = Field(None, description="an image or a folder of images, or `builtin:scenery/val`")
    output: AnyPath | None = Field(None, description="the folder that the latents go to")
    format: Literal["shards", "files", "npy", "wds"] = Field(
        "shards",
        description="`shards`: safetensors with many latents each; `files` and `npy`: one safetensors or .npy file per "
        "image, mirroring the folders; `wds`: WebDataset tars",
    )


class MemTable(Table):
    """Defaults of `flexvae mem`."""

    memory: Bytes | None = Field(None, description="the memory to fill, as in `24GiB`; by default what the device has")


class PluginsTable(Table):
    """Which distribution wins where several bring the same code."""

    prefer: dict[str, str] = Field({}, description='code -> distribution, as in `prefer = { Snake = "flexvae-audio" }`')
