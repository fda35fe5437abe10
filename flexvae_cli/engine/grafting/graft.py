"""An edited structure with the weights of a trained model: matched layer by layer, carried tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flexvae_cli.api import LayerSpec, Param, Shape, mirrors
from flexvae_cli.codes import Bound
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.grafting.identity import make_identity
from flexvae_cli.engine.grafting.matching import Pair, match
from flexvae_cli.engine.grafting.tensors import Rows, delta_, first, fitted, halves, is_convolution
from flexvae_cli.engine.model import Model, load_files
from flexvae_cli.engine.modelfiles import ModelFiles
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.engine.vae import VAE
from flexvae_cli.net import Net
from flexvae_cli.structure import Item, Leaf, Structure
from flexvae_cli.tracing import Row

Action = Literal["kept", "changed", "identity", "new", "dropped"]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Grafted:
    """What became of one layer, or of a whole residual that is new or was dropped.

    Attributes:
        part: `encoder`, `bottleneck` or `decoder`.
        key: its place in the new net; in the old one where it was dropped.
        code, was: the new code and the old one; empty where there is none.
        action: `kept` (the same weights), `changed` (made to fit), `identity` (new, and changes nothing yet), `new`
            (fresh weights, or none), `dropped`.
        notes: what is to be said of it.
        carried, numbers: how many of the layer's numbers come from the old model, and how many there are.
    """

    part: str
    key: str
    code: str
    was: str
    action: Action
    notes: tuple[str, ...] = ()
    carried: int = 0
    numbers: int = 0


def trained(found: ModelFiles) -> Model:
    """The model as its structure stands, and in the layout of a freshly built one: equal weights give equal bits.

    Raises:
        ModelError: the weights do not fit the description, or a plugin is missing.
    """
    model = load_files(found, fuse="off")
    model.vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model


def graft(old: Model, net: Net, seed: int) -> tuple[VAE, tuple[Grafted, ...]]:
    """Build a net with what it can take over from a trained model.

    Args:
        old: the trained model.
        net: the edited structure.
        seed: of the weights that are new.

    Returns:
        The autoencoder, in evaluation mode on the CPU, and what became of each layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "weights"))
        vae = build_vae(net, logits=old.vae.logits).eval()
    traces = net.traces(net.shape, [])
    told: list[Grafted] = []
    parts: tuple[tuple[str, Structure, Structure, dict[str, Row]], ...] = (
        ("encoder", old.net.encoder, net.encoder, {row.key: row for row in traces[0].rows}),
        ("decoder", old.net.decoder, net.decoder, {row.key: row for row in traces[2].rows}),
    )
    for part, before, after, rows in parts:
        both_kl = old.net.bottleneck.code == net.bottleneck.code == "KL"
        split = _last(after.expanded()) if part == "encoder" and both_kl else frozenset[str]()
        told += _part(part, old.vae, vae, match(before.expanded(), after.expanded()), rows, split)
        if part == "encoder":
            told.append(_bottleneck(old, vae, net))
    return vae, tuple(told)


def _part(
    part: str, old: VAE, new: VAE, pairs: Iterator[Pair], rows: Mapping[str, Row], split: frozenset[str]
) -> Iterator[Grafted]:
    for was, now in pairs:
        if now is None:
            assert was is not None
            yield Grafted(part, was.key, "", _code(was), "dropped", numbers=_numbers(_module(old, part, was)))
        elif was is None:
            yield _fresh(part, now, _module(new, part, now), rows)
        elif isinstance(was, Leaf) and isinstance(now, Leaf):
            modules = (_module(old, part, was), _module(new, part, now))
            outputs = halves if now.key in split and _convolutions(modules[1]) == 1 else first
            yield _carried(part, now.key, was.bound, now.bound, modules, outputs)


def _bottleneck(old: Model, vae: VAE, net: Net) -> Grafted:
    was, now, modules = old.net.bottleneck, net.bottleneck, (old.vae.bottleneck, vae.bottleneck)
    if was.spec.name != now.spec.name:
        notes = ("fresh weights",) if _numbers(vae.bottleneck) else ()
        return Grafted("bottleneck", "0", now.code, was.code, "new", notes, 0, _numbers(vae.bottleneck))
    return _carried("bottleneck", "0", was, now, modules, first)


def _carried(part: str, key: str, was: Bound, now: Bound, modules: tuple[nn.Module, nn.Module], rows: Rows) -> Grafted:
    """Take over the tensors of a matched layer, each at the size that it has now."""
    old, new = modules
    transposed = isinstance(now.spec, LayerSpec) and now.spec.mirror is mirrors.transposed_convolution
    trained, result, carried, left = old.state_dict(), new.state_dict(), 0, list[str]()
    for name, fresh in list(result.items()):
        owner, last = _owner(new, name)
        found = None
        if name in trained:
            same = was.code == now.code
            both = (_owner(old, name)[0], owner)
            found = fitted(trained[name], fresh, both, last, first if same else rows, transposed=transposed)
        if found is None:
            left.append(name)
        else:
            result[name] = found
            carried += min(trained[name].numel(), found.numel())
    new.load_state_dict(result)
    left = [name for name in left if not _passes_on(old, new, name)]
    notes = [f"{name} {old_value} -> {value}" for name, old_value, value in _changes(was, now)]
    notes += [f"fresh: {', '.join(left)}"] if left else []
    action: Action = "kept" if was.code == now.code and not left else "changed"
    return Grafted(part, key, now.code, was.code, action, tuple(notes), carried, _numbers(new))


def _passes_on(old: nn.Module, new: nn.Module, name: str) -> bool:
    """Whether a convolution stands where the identity stood, and passes on what comes in."""
    place = name.rpartition(".")[0]
    stood = dict(old.named_modules()).get(place)
    return isinstance(stood, nn.Identity) and delta_(new.get_submodule(place))


def _fresh(part: str, now: Item, module: nn.Module, rows: Mapping[str, Row]) -> Grafted:
    """A new layer or residual: the identity where it can be."""
    takes, gives = _ends(now, rows)
    numbers, code, channels = _numbers(module), _code(now), min(takes[0], gives[0])
    if takes[1:] == gives[1:] and make_identity(module, takes, channels):
        note = () if takes[0] == gives[0] else (f"passes on the first {channels} of {takes[0]} channels",)
        return Grafted(part, now.key, code, "", "identity", note, 0, numbers)
    note = ("fresh weights" if numbers else "no weights",)
    return Grafted(part, now.key, code, "", "new", (*note, "changes what comes through"), 0, numbers)


def _ends(item: Item, rows: Mapping[str, Row]) -> tuple[Shape, Shape]:
    """What goes into an item and what comes out."""
    if isinstance(item, Leaf):
        return rows[item.key].takes, rows[item.key].gives
    return _ends(item.body[0], rows)[0], _ends(item.body[-1], rows)[1]


def _last(items: tuple[Item, ...]) -> frozenset[str]:
    """The keys of the convolutions, or the like, that make what the bottleneck takes."""
    for item in reversed(items):
        if not isinstance(item, Leaf):
            return _last(item.body) | _last(item.shortcut)
        if "out_channels" in item.bound.values:
            return frozenset({item.key})
    return frozenset()


def _convolutions(module: nn.Module) -> int:
    return sum(is_convolution(each) for each in module.modules())


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that a tensor belongs to, normalised weights included, and its name there."""
    place, _, last = name.rpartition(".")
    return module.get_submodule(place.partition("parametrizations")[0].rstrip(".")), last


def _module(vae: VAE, part: str, item: Item) -> nn.Module:
    return vae.get_submodule(f"{part}.{item.key}")


def _code(item: Item) -> str:
    return item.bound.code if isinstance(item, Leaf) else "residual"


def _numbers(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _changes(was: Bound, now: Bound) -> Iterator[tuple[str, str, str]]:
    """The name and the parameters that are no longer what they were."""
    if was.spec.name != now.spec.name:
        yield "", was.spec.name, now.spec.name
    for param in now.spec.params:
        before = was.spec.param(param.name)
        if before is not None and was.values[param.name] != now.values[param.name]:
            yield param.option, _text(before, was.values[param.name]), _text(param, now.values[param.name])


def _text(param: Param, value: object) -> str:
    return "default" if value is None else param.format(value)
