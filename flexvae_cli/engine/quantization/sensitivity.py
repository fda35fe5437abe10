"""What the layers of a model stand: the PSNR that is lost when the weights of one, or of several, have few bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from flexvae_cli.engine.bottlenecks.quantized import QuantizedEntry
from flexvae_cli.engine.inference import Sample, decode_batch, encode_batch, runs
from flexvae_cli.engine.metrics import psnr, to_unit
from flexvae_cli.engine.quantization.packed import LEAST, MOST, packable, quantize, size_of
from flexvae_cli.engine.tensorfiles import tensor_bytes
from flexvae_cli.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.model import Model

Plan = dict[str, int]
"""Bits by the place of a layer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose weights can be packed.

    Attributes:
        place: its name in the module, as in `encoder.3`.
        code: its code.
        weights: the names of the tensors to pack.
        sizes: the bytes of the whole layer by bits; 32 stands for float32.
    """

    place: str
    code: str
    weights: tuple[str, ...]
    sizes: Mapping[int, int]


def layers_of(model: Model) -> list[Layer]:
    """The layers of encoder and decoder that have weights to pack; quantizers and the bottleneck stay as they are.

    Raises:
        UsageError: there are none.
    """
    parameters, found = dict(model.vae.named_parameters()), []
    for place, code in model.net.codes.items():
        module = model.vae.get_submodule(place)
        own = {f"{place}.{name}": tensor for name, tensor in module.state_dict().items()}
        weights = {name: tensor for name, tensor in own.items() if name in parameters and packable(tensor)}
        if not weights or place == "bottleneck" or isinstance(module, QuantizedEntry):
            continue
        rest = tensor_bytes(own) - tensor_bytes(weights)
        sizes = {bits: rest + sum(size_of(w, bits) for w in weights.values()) for bits in range(LEAST, MOST + 1)}
        found.append(Layer(place, code, tuple(weights), {**sizes, 32: tensor_bytes(own)}))
    if not found:
        raise UsageError("has no weights to quantize", where=str(model.path))
    return found


def bits_of_tensors(layers: Sequence[Layer], plan: Plan) -> dict[str, int]:
    """The bits of every tensor that a plan packs."""
    return {name: plan[layer.place] for layer in layers if layer.place in plan for name in layer.weights}


class Gauge:
    """Measures a model on samples with some of its weights in few bits; the model is as before when it is done.

    Args:
        model: what is measured.
        samples: whole images.
        batch_size: most images of a batch.

    Raises:
        ModelError: the model gives numbers that are not finite.
        DataError: it gives a sample back as it was, so that there is no PSNR to lose.
    """

    def __init__(self, model: Model, samples: Sequence[Sample], batch_size: int) -> None:
        self.model, self.samples, self.batch_size = model, samples, batch_size
        self.layers = layers_of(model)
        self.before = self.psnr({})

    def psnr(self, plan: Plan) -> float:
        """Mean PSNR in dB over the samples with the weights of a plan."""
        model, each = self.model, []
        with _in_bits(model.vae, bits_of_tensors(self.layers, plan)):
            for run in runs(self.samples, lambda sample: model.net.fitting(sample.size), self.batch_size):
                latents = encode_batch(model, [sample.x for sample in run])
                for sample, x in zip(run, decode_batch(model, latents, [s.size for s in run]), strict=True):
                    each.append(_finite(psnr(to_unit(sample.x), to_unit(x)), sample, model))
        return math.fsum(each) / len(each)

    def drop(self, plan: Plan) -> float:
        """The dB that a plan costs; below 0 where it gains."""
        return self.before - self.psnr(plan)

    def drops(self, layer: Layer, negligible: float) -> dict[int, float]:
        """What a layer costs by bits, when all others stay as they are: from the fewest bits to negligible dB."""
        found = {}
        for bits in range(LEAST, MOST + 1):
            found[bits] = self.drop({layer.place: bits})
            if found[bits] <= negligible:
                break
        return found


def _finite(value: float, sample: Sample, model: Model) -> float:
    if math.isnan(value):
        raise ModelError(f"gives pixels of {sample.name} that are not finite", where=str(model.path))
    if math.isinf(value):
        what = "comes back from the model just as it was: there is no PSNR to lose"
        raise DataError(what, where=sample.name, hint="give other images")
    return value


@contextmanager
@torch.no_grad()
def _in_bits(vae: nn.Module, chosen: Mapping[str, int]) -> Iterator[None]:
    """While held, parameters have the values that their packed forms stand for."""
    parameters = dict(vae.named_parameters())
    kept = {name: parameters[name].clone() for name in chosen}
    try:
        for name, bits in chosen.items():
            parameters[name].copy_(quantize(parameters[name], bits).value())
        yield
    finally:
        for name, value in kept.items():
            parameters[name].copy_(value)
