"""Every registered layer, in random chains: followed without memory, it holds what it holds for real."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from learners import plan_for
from torch import nn

from flexvae_cli import plugins
from flexvae_cli.api import LayerSpec, layer, same
from flexvae_cli.api.docstring import Example
from flexvae_cli.engine.build import build_layer
from flexvae_cli.engine.memory import standin
from flexvae_cli.engine.memory.devices import find_gpu
from flexvae_cli.engine.memory.dry import dry_step
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.forecast import Question
from flexvae_cli.engine.memory.semantics import on_meta
from flexvae_cli.engine.memory.standin import StandIn, measured, on_fakes
from flexvae_cli.engine.memory.tracker import Tracker
from flexvae_cli.errors import UsageError
from flexvae_cli.structure import bind_code

REGISTRY = plugins.installed().registry
LAYERS = {each.spec.name: each.spec for each in REGISTRY.all("layer") if isinstance(each.spec, LayerSpec)}
EXAMPLES = {name: spec.examples for name, spec in LAYERS.items() if spec.meta}
SCALARS = 64  # bytes: a number may be a constant there and a result here


def test_every_layer_but_these_is_followed() -> None:
    assert sorted(LAYERS.keys() - EXAMPLES.keys()) == []  # those whose spec says meta=False


def chain_from(first: Example, draw: random.Random) -> list[Example]:
    """The example, and up to three others, each of which takes what the one before it gives."""
    found = [first]
    while len(found) < 4:
        fitting = [e for e in chain.from_iterable(EXAMPLES.values()) if e.takes == found[-1].gives]
        if not fitting:
            break
        found.append(draw.choice(fitting))
    return found


def built(examples: list[Example], device: str) -> nn.Sequential:
    with torch.device(device):
        return nn.Sequential(*(build_layer(bound(example.code), "test", "0") for example in examples)).train()


def bound(code: str):
    problems: list = []
    found = bind_code(code, "layer", REGISTRY, "test", problems, {})
    assert not problems
    return found


def followed(examples: list[Example], batch: int, device: str) -> Tracker:
    """One pass forward and backward."""
    net = built(examples, device)
    torch.manual_seed(0)  # some layers draw how much they do
    x = torch.zeros(batch, *examples[0].takes, device=device).requires_grad_()
    with on_meta(None), Tracker(device) as tracker:
        tracker.hold([x], "samples")
        tracker.hold([*net.parameters(), *net.buffers()], "parameters")
        tracker.stage = "forward"
        net(x).square().mean().backward()
    return tracker


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_memory_a_chain_holds_what_it_holds_for_real(name: str) -> None:
    draw = random.Random(name)  # the same every time
    for example in EXAMPLES[name]:
        examples, batch = chain_from(example, draw), draw.randint(2, 5)
        real, dry = (followed(examples, batch, device) for device in ("cpu", "meta"))
        codes = [each.code for each in examples]
        assert abs(dry.peak.bytes - real.peak.bytes) <= SCALARS, (codes, batch)


def needy(growth: str) -> LayerSpec:
    """A layer that looks at its numbers, and keeps two maps."""

    @layer("Needy", trace=same, meta=False)
    def factory() -> nn.Module:
        """Looks at its numbers."""

        class Needy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3, 1, 1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if growth == "uneven" and len(x) == 3:
                    x = x.exp().exp().exp()
                return (x * self.weight).exp() if x.sum().item() < 1e9 else -x

        return Needy()

    return factory


def test_a_layer_that_cannot_run_without_memory_is_stood_in_for() -> None:
    real = needy("even").factory()
    dry = StandIn(real, "Needy", "encoder.json[0]")
    peaks = []
    for module, device in ((real, "cpu"), (dry, "meta")):
        x = torch.zeros(7, 3, 16, 16, device=device, requires_grad=True)
        with Tracker(device) as tracker:
            tracker.hold([x, *module.parameters()], "known")
            y = module(x)
            assert y.shape == x.shape
            y.backward(torch.ones_like(y))
        peaks.append(tracker.peak.bytes)
        assert all(p.grad is not None for p in module.parameters())
    assert peaks[1] == pytest.approx(peaks[0], rel=0.08)


class Mixing(nn.Module):
    """Takes a number of its own on the CPU for an index, which torch's meta device does not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x).exp()
        return y * y[:, torch.tensor(2, device="cpu")].unsqueeze(1)


def test_fake_tensors_are_followed_to_the_byte_where_they_can_be() -> None:
    mixing, looking = Mixing(), needy("even").factory()
    for batch in (2, 7):
        assert on_fakes(mixing, (3, 16, 16), batch) == measured(mixing, (3, 16, 16), batch)
    assert on_fakes(looking, (3, 16, 16), 2) is None
    for real, computed in ((mixing, False), (looking, True)):
        dry = StandIn(real, "Layer", "encoder.json[0]")
        with Tracker() as tracker:
            dry(torch.zeros(7, 3, 16, 16, device="meta"))
        assert dry.computed == computed
        assert tracker.events  # of what stands in, and of nothing that was looked at apart
        assert all(
            block.operation.startswith(("aten.zeros", "aten.empty", "aten.new_empty")) for block in tracker.blocks
        )


def test_what_stands_in_has_the_parts_and_the_names_of_the_layer() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    inner[1].weight = nn.Parameter(inner[0].weight[0])
    inner[1].bias = inner[1].weight
    for real, parts in ((needy("even").factory(), 0), (inner, 2)):
        dry = StandIn(real, "Needy", "encoder.json[0]")
        assert len(list(dry.children())) == parts  # what the "blocks" of a net are told by
        for read in (nn.Module.named_parameters, nn.Module.named_buffers):
            named = [read(each, remove_duplicate=False) for each in (dry, real)]
            ours, theirs = ([(name, tuple(t.shape)) for name, t in each] for each in named)
            assert ours == theirs
        assert len(list(dry.parameters())) == len(list(real.parameters()))


def test_a_layer_that_grows_unevenly_is_refused() -> None:
    dry = StandIn(needy("uneven").factory(), "Needy", "encoder.json[0]")
    with pytest.raises(UsageError, match=r"encoder\.json\[0\]: Needy takes memory that does not grow evenly"):
        dry(torch.zeros(7, 3, 16, 16, device="meta"))


def test_a_net_with_such_layers_is_followed_and_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for(tmp_path, data={"input": "3x32x32"})
    exact = dry_step(plan, 3)
    spec = plan.net.encoder.expanded()[1].bound.spec
    monkeypatch.setitem(spec.__dict__, "meta", False)
    apart = dry_step(plan, 3)
    assert apart.computed == ()
    assert [text.rpartition("/")[2] for text in apart.apart] == [
        "e.json[1] VAERB_32_32",
        "d.json[1].residual[0] VAERB_32_32",
    ]
    assert apart.peak.bytes == pytest.approx(exact.peak.bytes, rel=0.08)
    document = plan.settings.model_dump(mode="json", exclude_none=True)
    asked = Question(document, str(tmp_path / "c.toml"), find_gpu("t4"), 3, 2**30)
    assert (Followed(asked).grade, "followed apart" in apart_notes(asked)) == ("D", True)
    monkeypatch.setattr(standin, "on_fakes", lambda *_: None)
    assert (Followed(asked).grade, apart_notes(asked).count("measured apart")) == ("E", 2)


def apart_notes(asked: Question) -> str:
    followed = Followed(asked)
    followed.at(asked.batch)
    return " ".join(followed.notes)
