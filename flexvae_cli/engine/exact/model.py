"""A model that gives the same with less memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from flexvae_cli.api import Encoded, Gaussian, Shape
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.device import return_freed_memory
from flexvae_cli.engine.exact.activation import Activation
from flexvae_cli.engine.exact.bands import Local, Whole
from flexvae_cli.engine.exact.plan import Paths, Planner, Stage, fit, run
from flexvae_cli.engine.exact.ways import identity, way_of
from flexvae_cli.engine.model import Model
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import ResourceError
from flexvae_cli.structure import Leaf

KIB, MIB = 1 << 10, 1 << 20


def _named(count: int) -> str:
    """`12MiB`, as it is typed; rounded up."""
    return f"{math.ceil(count / MIB)}MiB" if count >= 16 * MIB else f"{math.ceil(count / KIB)}KiB"


class Latent(nn.Module):
    """A bottleneck as a layer: nothing comes out but the latent."""

    def __init__(self, bottleneck: nn.Module) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.bottleneck(x).z
        return z


class ExactModel(Model):
    """A model whose layers run over bands, from file to file; what it gives is what the model gives, up to rounding.

    Args:
        model: the model; its weights are shared.
        memory: most bytes of tensors at a time, beyond the weights.
        folder: where the disk is; the files have no names, and are gone when the process is.
        decodes: whether what is encoded will be decoded too, so that its needs are asked for beforehand.

    Attributes:
        planner: knows which codes had to run on the whole tensor, see `Planner.fallen`.
    """

    def __init__(self, model: Model, memory: int, folder: Path, *, decodes: bool = False) -> None:
        super().__init__(model.vae, model.net, model.description, model.path, model.weights_hash)
        self.memory, self.folder, self.decodes = memory, folder, decodes
        return_freed_memory()
        self.planner = Planner(folder)
        self._plans: dict[tuple[str, Shape], list[Stage | Paths]] = {}
        self._bottleneck: dict[Shape, Stage] = {}

    @cached_property
    def _twin(self) -> VAE:
        """The nets without memory."""
        return build_vae(self.net, logits=self.vae.logits, device="meta").eval()

    @torch.inference_mode()
    def encoded(self, x: Tensor) -> Encoded:
        """As `Model.encoded`, without losses and statistics."""
        self._require_channels(x, self.net.shape[0], "samples")
        return _joined([self._encoded(self.padded(one)) for one in x.split(1)], dim=0)

    @torch.inference_mode()
    def decode(self, z: Tensor, size: Shape | None = None) -> Tensor:
        """As `Model.decode`."""
        self._require_channels(z, self.net.latent_shape[0], "latents")
        x = torch.cat([self._decoded(one) for one in z.split(1)]) if len(z) > 1 else self._decoded(z)
        return x if size is None else x[(slice(None), slice(None), *(slice(n) for n in size))]

    def _encoded(self, x: Tensor) -> Encoded:
        self._require(tuple(x.shape[1:]))
        with ExitStack() as stack:
            h = self._run("encoder", x, stack)
            stage = self._bottleneck[h.shape[1:]]
            bands = [self.vae.bottleneck(h.read(*band).contiguous().to(self.device)) for band in h.bands(stage.rows)]
        return _joined(bands, dim=2)

    def _decoded(self, z: Tensor) -> Tensor:
        if ("decoder", tuple(z.shape[1:])) not in self._plans:
            self._refuse(self._plan("decoder", tuple(z.shape[1:])))
        with ExitStack() as stack:
            out = self._run("decoder", z, stack)
            x = out.whole()
        if self.vae.logits:
            x.sigmoid_().mul_(2).sub_(1)
        return x.clamp_(-1.0, 1.0).to(self.device)

    def _run(self, part: str, x: Tensor, stack: ExitStack) -> Activation:
        def make(shape: Shape, axis: int) -> Activation:
            return stack.enter_context(Activation(shape, self.folder, axis))

        source = make(tuple(x.shape), 2)
        source.write(0, x)
        return run(self._plans[part, tuple(x.shape[1:])], source, make)

    # ------------------------------------------------------------------------------------------------------- memory

    def _require(self, shape: Shape) -> None:
        """Plan for samples (channels, *space), and refuse them where the memory is too small for them."""
        if ("encoder", shape) not in self._plans:
            least = self._plan("encoder", shape)
            if self.decodes:
                least = max(least, self._plan("decoder", self.net.traces(shape, [])[1].gives))
            self._refuse(least)

    def _refuse(self, least: int) -> None:
        if least > self.memory:
            self._plans.clear()
            raise ResourceError(
                f"{_named(self.memory)} is too little; this net and this input need {_named(least)}",
                where="--memory",
                hint=f"the smallest that would do is --memory {_named(least)}",
            )

    def _plan(self, part: str, shape: Shape) -> int:
        """Plan a part for an input of this shape; returns the bytes that it needs at least."""
        structure = getattr(self.net, part)
        stages = self.planner.stages(structure.expanded(), getattr(self.vae, part), getattr(self._twin, part), shape)
        self._plans[part, shape] = stages
        takes, gives = (4 * math.prod(each) for each in (shape, stages[-1].way.shape))
        held = 2 * takes if part == "encoder" else takes + gives  # the picture as it came, and padded; or as it came
        least = max(held + fit(stages, self.memory - held), held + gives)
        return least if part == "decoder" else max(least, held + self._plan_bottleneck(stages[-1].way.shape, held))

    def _plan_bottleneck(self, shape: Shape, held: int) -> int:
        """Band by band, where the bottleneck is local as its rule says."""
        leaf = Leaf("0", self.net.bottleneck, "model.bottleneck")
        way = way_of([leaf], shape)
        how = Local() if way is not None and way.local and way.still else Whole()
        way = way or identity(self._twin.bottleneck(torch.empty(1, *shape, device="meta")).z.shape[1:])
        module, twin = (Latent(vae.bottleneck) for vae in (self.vae, self._twin))
        stage = self._bottleneck[shape] = Stage((leaf.bound.code,), how, module, twin, shape, way)
        return fit([stage], self.memory - held)


def _joined(parts: Sequence[Encoded], dim: int) -> Encoded:
    """Latents, posteriors and indices, end to end."""
    posteriors = [part.posterior for part in parts if part.posterior is not None]
    indices = [part.indices for part in parts if part.indices is not None]
    posterior = Gaussian(*(torch.cat(each, dim) for each in zip(*posteriors, strict=True))) if posteriors else None
    return Encoded(torch.cat([part.z for part in parts], dim), posterior, torch.cat(indices, dim) if indices else None)
