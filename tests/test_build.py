"""From structures to modules, and what a stranger's factory may do wrong."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import nn

from flexvae_cli.api import layer
from flexvae_cli.api.trace import text
from flexvae_cli.engine.build import build_sequence, build_vae, meta_step
from flexvae_cli.errors import Problem, ResourceError, UsageError
from flexvae_cli.net import make_net
from flexvae_cli.plugins import installed
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.structure import parse_structure
from flexvae_cli.tracing import trace


@layer("Raises")
def raises(channels: int = 1):
    """A factory that raises."""
    raise RuntimeError("no such kernel")


@layer("Number")
def number():
    """A factory that makes no module."""
    return 3


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=1, keepdim=True)


@layer("Untraced")
def untraced():
    """A layer without a static rule."""
    return Mean()


@layer("Flat")
def flat():
    """A layer that takes the axes away."""
    return nn.Flatten()


REGISTRY = Registry([*installed().registry.all("layer"), *installed().registry.all("bottleneck"),
                     *(Registered(spec, "strange", "1") for spec in (raises, number, untraced, flat))])  # fmt: skip


def items(document):
    return parse_structure(document, REGISTRY, "net.json").expanded()


def test_keys_of_the_structure_are_keys_of_the_state_dict():
    found = items(["C2d_3_4_1", {"residual": ["GN_2_4", "C2d_4_4_1"], "shortcut": ["C2d_4_4_1_bias=false"]}])
    assert list(build_sequence(found).state_dict()) == [
        *("0.weight", "0.bias", "1.body.0.weight", "1.body.0.bias", "1.body.1.weight", "1.body.1.bias"),
        "1.shortcut.0.weight",
    ]


def test_a_residual_entry_adds_its_paths():
    net = build_sequence(items([{"residual": ["UpS_1"]}, {"residual": ["UpS_2"], "shortcut": ["UpS_2"]}]))
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(net(x), 4 * nn.functional.interpolate(x, scale_factor=2))


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("Raises", f"net.json[1]: Raises cannot be built: RuntimeError: no such kernel ({__file__}:"),
        ("Number", "net.json[1]: Number makes a int, not a torch module"),
    ],
)
def test_a_factory_that_fails_is_named_with_its_entry(code, what):
    with pytest.raises(UsageError) as caught:
        build_sequence(items(["SiLU", code]))
    assert str(caught.value).startswith(what)


def test_a_layer_without_a_rule_is_measured_on_the_meta_device():
    problems: list[Problem] = []
    found = trace(items(["C2d_3_4_1", "Untraced", "C2d_1_2_1"]), (3, 8, 8), problems, meta_step)
    assert not problems
    assert [text(row.gives) for row in found.rows] == ["4x8x8", "1x8x8", "2x8x8"]
    assert [row.ruled for row in found.rows] == [True, False, True]
    stopped = trace(items(["C2d_3_4_1", "Untraced", "C2d_1_2_1"]), (3, 8, 8), problems)
    assert not stopped.complete
    assert len(stopped.rows) == 1


def test_a_measured_layer_keeps_the_number_of_axes():
    problems: list[Problem] = []
    trace(items(["Flat", "SiLU"]), (3, 8, 8), problems, meta_step)
    (problem,) = problems
    assert problem.what == "Flat gives 192; it must keep the axes of the 3x8x8 that comes in with the data"


def test_weights_that_exceed_the_machine_are_refused_before_anything_is_allocated():
    parts = [parse_structure(d, REGISTRY, "n") for d in (["C2d_3_2000000_1", "C2d_2000000_2000000_1"], ["SiLU"])]
    with pytest.raises(ResourceError, match=r"the weights alone need 14\d{3}\.\d GiB; this machine has"):
        build_vae(make_net(parts[0], "None", parts[1], (3, 8, 8), REGISTRY, None))


def random_layers(draw: random.Random, channels: int) -> list:
    """A list of core codes whose channels fit, whatever their sizes do."""
    layers = []
    for _ in range(draw.randint(1, 6)):
        kind = draw.choice(["C2d", "VAERB", "VAEA", "GN", "SiLU", "MaxP", "UpS", "residual"])
        out = draw.choice([32, 64])
        if kind == "C2d":
            k, s, p = draw.randint(1, 5), draw.randint(1, 4), draw.randint(0, 3)
            mode = draw.choice(["", "_padding-mode=reflect", "_padding-mode=circular", "_bias=false", "_dilation=2"])
            layers.append(f"C2d_{channels}_{out}_{k}_{s}_{p}{mode}")
            channels = out
        elif kind == "VAERB":
            layers.append(f"VAERB_{channels}_{out}")
            channels = out
        elif kind == "residual":
            layers.append({"residual": [f"C2d_{channels}_{channels}_3_1_1", "SiLU"]})
        elif kind == "MaxP":
            k = draw.randint(1, 3)
            layers.append(f"MaxP_{k}_{draw.randint(1, 3)}_{draw.randint(0, k // 2)}")
        else:
            layers.append({"VAEA": f"VAEA_{channels}", "GN": f"GN_8_{channels}", "SiLU": "SiLU", "UpS": "UpS_2"}[kind])
    return layers


def test_the_trace_and_torch_agree_on_random_nets(fuzz_factor):
    """Shape, parameters and refusal: what the static rules say is what torch does, on the meta device."""
    draw = random.Random(1)
    refused = 0
    for _ in range(5000 * fuzz_factor):
        document, size = random_layers(draw, 32), (draw.randint(1, 24), draw.randint(1, 24))
        problems: list[Problem] = []
        found = trace(items(document), (32, *size), problems)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of empty outputs before it refuses them
            net = build_sequence(items(document))
            try:
                shape = tuple(net(torch.empty(2, 32, *size)).shape[1:])
            except (RuntimeError, ValueError):
                shape = None
        if problems:
            refused += 1
            assert shape is None, (document, size, problems)
        else:
            assert shape == found.gives, (document, size)
            assert sum(p.numel() for p in net.parameters()) == found.parameters
    assert 200 < refused < 4800 * fuzz_factor
