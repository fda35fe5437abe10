"""The checks pass what is sound and name each defect that is planted."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flexvae_cli import builtin
from flexvae_cli.api import (
    BadFile,
    Count,
    Encoded,
    Gaussian,
    Header,
    LayerSpec,
    Reader,
    Reading,
    Rule,
    Shape,
    Spec,
    bottleneck,
    conv,
    layer,
    loss,
    pointwise,
    reader,
    same,
)
from flexvae_cli.api.testing import check_bottleneck, check_layer, check_loss, check_reader


class Around(nn.Module):
    """A 3x3 convolution, then any function of its output."""

    def __init__(self, channels: int, after: Callable[[torch.Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.after = after

    def forward(self, x: torch.Tensor) -> Any:
        return self.after(self.conv(x))


def sound_rule(channels: int) -> Rule:
    return conv(channels, channels, 3, padding=1)


def declared(
    build: Callable[[int], nn.Module], trace: Callable[..., Rule] | None = sound_rule, **marks: Any
) -> LayerSpec:
    """A layer whose module is `build(channels)`, described as a sound 3x3 convolution."""

    @layer("Probe", trace=trace, **marks)
    def probe(channels: Count) -> nn.Module:
        """Probe.

        Args:
            channels: channels that come in and go out.

        Examples:
            Probe_4: 4x8x8 -> 4x8x8
        """
        return build(channels)

    return probe


def complaint(spec: LayerSpec) -> str:
    """What check_layer says of a layer that breaks its contract."""
    with pytest.raises(AssertionError) as error:
        check_layer(spec)
    return str(error.value)


def does(after: Callable[[torch.Tensor], Any]) -> Callable[[int], nn.Module]:
    return lambda channels: Around(channels, after)


def draws_and_adds(y: torch.Tensor) -> torch.Tensor:
    return y + torch.randn_like(y)


def moves_default_dtype(y: torch.Tensor) -> torch.Tensor:
    torch.set_default_dtype(torch.float64)
    return y


def moves_gradient_mode(y: torch.Tensor) -> torch.Tensor:
    torch.set_grad_enabled(not torch.is_grad_enabled())
    return y


def silences_warnings(y: torch.Tensor) -> torch.Tensor:
    warnings.simplefilter("ignore")
    return y


def warns(y: torch.Tensor) -> torch.Tensor:
    warnings.warn("I am old", DeprecationWarning, stacklevel=1)
    return y


def cannot_run_on_meta(y: torch.Tensor) -> torch.Tensor:
    return y * math.copysign(1, y.detach().sum().item())


class Unsaved(Around):
    """Keeps a random scale outside its state dict."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.factor = random.random()

    def forward(self, x: torch.Tensor) -> Any:
        return x * self.factor + self.conv(x)


class InPlace(Around):
    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            x.mul_(0.5)
        return super().forward(x)


class Idle(Around):
    """Has a parameter that it does not use."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.unused = nn.Parameter(torch.zeros(channels))


class ZeroStart(nn.Module):
    """x plus a scale that starts at zero times a convolution: its reach cannot be seen without moving the scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.conv(x)
        return x + self.scale * h


def test_a_sound_layer_passes() -> None:
    check_layer(declared(Around))
    check_layer(declared(Around, trace=None))
    check_layer(declared(Around, dims=2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (does(lambda y: y[..., :-1]), "in training it gives 4x8x7, the example says 4x8x8"),
        (does(lambda y: y.double()), "it turns float32 into torch.float64"),
        (does(lambda y: y / 0), "its output is not finite"),
        (does(lambda y: (y, y)), "it returns tuple, not a tensor"),
        (does(lambda y: y.detach()), "no gradient reaches the input"),
        (does(lambda y: y.round()), "no gradient reaches the input"),
        (does(lambda y: y.detach()), "no gradient reaches the parameter conv.weight"),
        (does(lambda y: y - y.mean(0)), "a sample's output depends on the other samples of the batch"),
        (does(draws_and_adds), "in evaluation it draws random numbers"),
        (does(moves_default_dtype), "it changes torch's default dtype from torch.float32 to torch.float64"),
        (does(moves_gradient_mode), "it changes torch's gradient mode from True to False"),
        (does(silences_warnings), "it changes the warning filters"),
        (does(warns), "DeprecationWarning: I am old"),
        (does(cannot_run_on_meta), "meta device: RuntimeError"),
        (does(lambda y: y.float()), "as bfloat16, it returns torch.float32"),
        (Unsaved, "loads the state dict of another gives another output"),
        (InPlace, "in evaluation it changes its input in place"),
        (Idle, "no gradient reaches the parameter unused"),
    ],
)
def test_a_defect_of_the_module_is_caught(build: Callable[[int], nn.Module], message: str) -> None:
    assert message in complaint(declared(build))


def two_convolutions(channels: int) -> nn.Module:
    return nn.Sequential(Around(channels), Around(channels))


@pytest.mark.parametrize(
    ("build", "trace", "message"),
    [
        (Around, lambda channels: conv(channels, channels, 3), "the trace rule says 4x6x6, the example 4x8x8"),
        (
            Around,
            lambda channels: conv(channels, channels, 3, padding=1, bias=False),
            "says 144 parameters, the module",
        ),
        (Around, lambda channels: pointwise(channels, 148), "reads 3 to 5 of axis 0, the rule says 4 to 4"),
        (ZeroStart, lambda channels: pointwise(channels, 149), "reads 3 to 5 of axis 1, the rule says 4 to 4"),
        (nn.Identity, sound_rule, "reads 4 to 4 of axis 0, the rule says 3 to 5"),
        (Around, lambda channels: conv(2 * channels, channels, 3), "trace rule: ShapeError: takes 8 channels"),
    ],
)
def test_a_wrong_rule_is_caught(build: Callable[[int], nn.Module], trace: Callable[..., Rule], message: str) -> None:
    assert message in complaint(declared(build, trace))


def test_a_layer_that_cannot_run_on_meta_may_say_so() -> None:
    check_layer(declared(does(cannot_run_on_meta), meta=False))


def test_an_example_of_another_number_of_axes_is_caught() -> None:
    assert "the example has 2 axes, the spec says dims=3" in complaint(declared(Around, dims=3))


def test_a_missing_description_is_caught() -> None:
    @layer("Bare", trace=same)
    def bare(slope: float = 1.0) -> nn.Module:
        return nn.LeakyReLU(slope)

    told = complaint(bare)
    assert "the docstring has no summary line" in told
    assert "the parameter slope has no help under Args:" in told
    assert "the docstring has no example" in told


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("Bare_2: 4x8x8 = 4x8x8", "the example line 'Bare_2: 4x8x8 = 4x8x8' does not read as"),
        ("Bare_x: 4x8x8 -> 4x8x8", "Bare_x: does not run: ValueError: Bare slope wants a number, not 'x'"),
        ("Other_2: 4x8x8 -> 4x8x8", "Other_2: does not run: ValueError: is not the code of one Bare"),
        ("3*Bare_2: 4x8x8 -> 4x8x8", "3*Bare_2: does not run: ValueError: is not the code of one Bare"),
    ],
)
def test_a_wrong_example_is_caught(example: str, message: str) -> None:
    def bare(slope: float = 1.0) -> nn.Module:
        return nn.LeakyReLU(slope)

    bare.__doc__ = f"Bare.\n\nArgs:\n    slope: the slope.\n\nExamples:\n    Bare: 4x8x8 -> 4x8x8\n    {example}\n"
    assert message in complaint(layer("Bare", trace=same)(bare))


def test_everything_that_is_wrong_is_told_at_once() -> None:
    told = complaint(declared(does(lambda y: y + y.detach().mean(0).double()), trace=same))
    for message in (
        "float64",
        "depends on the other samples",
        "0 parameters, the module has 148",
        "the rule says 4 to 4",
    ):
        assert message in told


def switches() -> Iterator[Any]:
    yield torch.get_default_dtype()
    yield torch.is_grad_enabled()
    yield torch.get_rng_state().tolist()
    yield list(warnings.filters)


@pytest.mark.parametrize("act", [moves_default_dtype, moves_gradient_mode, silences_warnings, draws_and_adds])
def test_the_callers_process_stays_as_it_was(act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    before = list(switches())
    complaint(declared(does(act)))
    assert list(switches()) == before


class Bend(nn.Module):
    """A bottleneck that makes of the encoder's output what a function says; a prior where one is given."""

    def __init__(self, encode: Callable[[torch.Tensor], Any], sample: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.encode = encode
        if sample is not None:
            self.sample = sample

    def forward(self, x: torch.Tensor) -> Any:
        return self.encode(x)


def bent(*parts: Any, trace: Callable[..., Rule] = same) -> LayerSpec:
    @bottleneck("Bend", trace=trace)
    def bend() -> nn.Module:
        """Bend.

        Examples:
            Bend: 4x6x6 -> 4x6x6
        """
        return Bend(*parts)

    return bend


@pytest.mark.parametrize("spec", [builtin.kl, builtin.none], ids=lambda spec: spec.name)
def test_the_bottlenecks_that_come_with_the_tool_are_sound(spec: LayerSpec) -> None:
    check_bottleneck(spec)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((lambda x: x,), "in training it returns Tensor, not Encoded"),
        ((lambda x: Encoded(x[:, :2]),), "its latent is 2x6x6, the example says 4x6x6"),
        ((lambda x: Encoded(x / 0),), "its latent is not finite"),
        ((lambda x: Encoded(x, Gaussian(x, x[:, :1])),), "its posterior's log_variance is 1x6x6"),
        ((lambda x: Encoded(x, indices=x),), "its indices are torch.float32"),
        ((lambda x: Encoded(x, loss=x.mean((1, 2, 3))),), "its own loss has the shape 2, and is no scalar"),
        ((lambda x: Encoded(x, stats={"use": x[0, 0, 0]}),), "its use has the shape 6"),
        ((lambda x: Encoded(x.detach()),), "no gradient reaches the input"),
        ((lambda x: Encoded(x + torch.randn_like(x)),), "in evaluation it draws random numbers"),
        ((lambda x: Encoded(x - x.mean(0)),), "depends on the other samples"),
        ((Encoded, lambda shape: torch.zeros(shape)), "sample: TypeError"),
        ((Encoded, lambda shape, generator=None: torch.zeros(1)), "sample gives 1, asked for 3x4x6x6"),
        ((Encoded, lambda shape, generator=None: torch.randn(shape)), "other latents for an equal generator"),
        ((Encoded, lambda shape, generator=None: torch.zeros(shape) / 0), "latents that are not finite"),
    ],
)
def test_a_defect_of_a_bottleneck_is_named(parts: Any, message: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_bottleneck(bent(*parts))
    assert message in str(error.value)


def test_a_wrong_rule_of_a_bottleneck_is_named() -> None:
    with pytest.raises(AssertionError, match="the trace rule says 2x6x6, the example 4x6x6"):
        check_bottleneck(bent(Encoded, trace=builtin.halves))


@pytest.mark.parametrize(
    "spec", [spec for spec in builtin.flexvae_losses() if spec.name != "lpips"], ids=lambda spec: spec.name
)
def test_the_losses_that_come_with_the_tool_are_sound(spec: Spec) -> None:
    check_loss(spec)


class Lines(Reader):
    """Signals of one channel: a number a line."""

    def __init__(self, defect: str = "") -> None:
        self.defect = defect
        self.kept = (lambda: 0) if defect == "stays" else None

    def finds(self, name: str, head: bytes) -> bool:
        return name.endswith(".lines") and self.defect != "blind"

    def header(self, path: Path, like: Shape) -> Header:
        return Header((1, len(self._numbers(path)) + (self.defect == "longer")))

    def read(self, path: Path, like: Shape) -> Reading:
        return Reading(np.array(self._numbers(path))[:, None], -1, -1 if self.defect == "narrow" else 1)

    def suffix(self, name: str) -> str:
        return ".lines"

    def write(self, x: np.ndarray, about: Any, suffix: str) -> bytes:
        numbers = {"upside down": -x[0], "halved": x[0, ::2]}.get(self.defect, x[0])
        return "\n".join(map(str, numbers)).encode()

    def _numbers(self, path: Path) -> list[float]:
        try:
            return [float(line) for line in path.read_text().split("\n")]
        except ValueError as error:
            if self.defect == "raises":
                raise
            raise BadFile(path, f"is no number a line: {error}") from None


def lines(defect: str) -> Spec:
    @reader("Lines", axes=(1,))
    def make() -> Reader:
        """Lines."""
        return Lines(defect)

    return make


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("", ""),
        ("blind", "it does not find a.lines"),
        ("stays", "it cannot be pickled"),
        ("longer", "header says 1x5, read gives 4x1, not 5x1"),
        ("narrow", "read says that -1 becomes -1 and -1 becomes 1"),
        ("upside down", "what it writes is 1.00 away"),
        ("halved", "what it writes of 1x4 is 1x2 when it is read"),
        ("raises", "header raises ValueError, not BadFile, for a file that is empty: could not convert"),
    ],
)
def test_a_defect_of_a_reader_is_named(defect: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.lines").write_text("-1\n0\n0.5\n-0.5")
    if not defect:
        check_reader(lines(defect), tmp_path / "a.lines", (1, 8))
        return
    with pytest.raises(AssertionError) as error:
        check_reader(lines(defect), tmp_path / "a.lines", (1, 8))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "like", "values"),
    [
        ("audio", "audio/elec_plip.wav", (1, 100), {}),
        ("volumes", "mri/front.nii.gz", (1, 8, 8, 8), {"low": 0.0, "high": 4096.0}),
        ("arrays", "ecg/mitbih208-0.npy", (1, 100), {"low": 0.0, "high": 4096.0}),
        ("images", "multichannel/flower-upper.pam", (4, 8, 8), {}),
    ],
)
def test_the_readers_that_come_with_the_tool_are_sound(
    name: str, file: str, like: Shape, values: dict[str, float]
) -> None:
    (spec,) = [spec for spec in builtin.flexvae_datasets() if spec.name == name]
    defaults = {param.name: param.default for param in spec.params}
    check_reader(spec, Path(__file__).parent / "data" / "real" / file, like, **{**defaults, **values})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: batch.output - batch.x, "it returns (2, 3, 32, 32), no scalar"),
        (lambda batch: 1.0, "it returns float, no scalar"),
        (lambda batch: batch.output.mean() / 0, "its value is not finite"),
        (lambda batch: batch.output.detach().mean(), "it has no gradient"),
        (lambda batch: (batch.output - batch.output).square().mean().sqrt(), "its gradient is not finite"),
        (lambda batch: batch.reconstructed, "does not run: AttributeError"),
    ],
)
def test_a_defect_of_a_loss_is_named(function: Callable[[Any], Any], message: str) -> None:
    @loss("Probe")
    def probe(weight: float = 1.0) -> Callable[[Any], Any]:
        return function

    with pytest.raises(AssertionError) as error:
        check_loss(probe)
    assert message in str(error.value)
    assert "the docstring has no summary line" in str(error.value)
    assert "the parameter weight has no help" in str(error.value)
