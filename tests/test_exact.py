"""Exact runs in bands: every layer, random structures, memory, files and ends."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flexvae_cli.api import LayerSpec, Shape
from flexvae_cli.api.trace import text
from flexvae_cli.commands._before_torch import before_torch
from flexvae_cli.config.settings.values import parse_bytes
from flexvae_cli.engine.build import build_sequence
from flexvae_cli.engine.exact.activation import Activation
from flexvae_cli.engine.exact.model import ExactModel
from flexvae_cli.engine.exact.moments import Moments
from flexvae_cli.engine.exact.plan import Paths, Planner, Stage, fit, run
from flexvae_cli.engine.fusing import Chain
from flexvae_cli.engine.memory.tracker import Tracker
from flexvae_cli.engine.model import Model, load
from flexvae_cli.engine.tiles import TiledModel
from flexvae_cli.errors import Exit, ResourceError, UsageError
from flexvae_cli.plugins import installed
from flexvae_cli.structure import Item, parse_structure
from flexvae_cli.tracing import trace

REGISTRY = installed().registry
TOLERANCE = 1e-5


def items_of(document: list, name: str = "net") -> tuple[Item, ...]:
    return parse_structure(document, REGISTRY, name).expanded()


def built(items: Sequence[Item], seed: int = 0) -> nn.Sequential:
    """The layers with weights that leave nothing out: what starts at zero, or next to it, does not stay there."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_sequence(items).eval()
        for parameter in module.parameters():
            if parameter.dim() < 2:
                parameter.data.add_(0.3 * torch.rand_like(parameter))
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return module


def twin_of(items: Sequence[Item]) -> nn.Module:
    with torch.device("meta"):
        return build_sequence(items).eval()


def noise(shape: Shape) -> Tensor:
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    return x + torch.linspace(-1, 2, shape[1]).view(-1, *(1 for _ in shape[2:]))


def in_rows(stages: Sequence[Stage | Paths], rows: int) -> None:
    """Have every stage computed so many rows at a time, the faster way."""
    for stage in stages:
        stage.rows = rows
        if isinstance(stage, Stage):
            stage.hasten()
        if isinstance(stage, Paths):
            in_rows(stage.body, rows)
            in_rows(stage.shortcut, rows)


def ways_of(stages: Sequence[Stage | Paths]) -> list[str]:
    """How each code was run."""
    found = []
    for stage in stages:
        if isinstance(stage, Paths):
            found += [*ways_of(stage.body), *ways_of(stage.shortcut)]
        else:
            found += [f"{code} {type(stage.how).__name__}" for code in stage.codes]
    return found


@torch.inference_mode()
def exactly(items: Sequence[Item], module: nn.Module, x: Tensor, folder: Path, rows: int) -> tuple[Tensor, list[str]]:
    """What the layers make of x, in bands, and how each was run."""
    planner = Planner(folder)
    stages = planner.stages(items, module, twin_of(items), tuple(x.shape[1:]))
    in_rows(stages, rows)
    with ExitStack() as stack:

        def make(shape: Shape, axis: int) -> Activation:
            return stack.enter_context(Activation(shape, folder, axis))

        source = make(tuple(x.shape), 2)
        source.write(0, x)
        return run(stages, source, make).whole(), ways_of(stages)


def agrees(expected: Tensor, found: Tensor) -> bool:
    return expected.shape == found.shape and bool(
        (expected - found).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()))
    )


def examples() -> list[tuple[str, Shape]]:
    """Every documented example of every layer that has a static rule, the first axis three times as long if it may."""
    found = []
    for entry in REGISTRY.all("layer"):
        spec = entry.spec
        assert isinstance(spec, LayerSpec)
        if spec.trace is None:
            continue
        for example in spec.examples:
            shape = tuple(example.takes)
            found.append((example.code, (shape[0], 3 * shape[1], *shape[2:])))
    return found


WHOLE = ("SE_", "LinA", "AdAvgP", "AdMaxP", "SinPos")  # global, in ways of their own


@pytest.mark.parametrize(("code", "shape"), examples(), ids=lambda each: each if isinstance(each, str) else text(each))
def test_every_layer_gives_in_bands_what_it_gives_at_once(code, shape, tmp_path):
    items = items_of([code])
    problems: list = []
    if not trace(items, shape, problems).complete:
        pytest.skip(f"{code} does not take {text(shape)}")
    module, x = built(items), noise(shape)
    with torch.inference_mode():
        expected = module(x)
    found, ways = exactly(items, module, x, tmp_path, 2)
    assert agrees(expected, found)
    whole = code.startswith(WHOLE) or "circular" in code
    assert ways == [f"{items[0].bound.code} Whole"] if whole else not any(way.endswith("Whole") for way in ways)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- random structures


def pool_of(axes: int, channels: int) -> list[list]:
    """Entries that may come next, each a list of entries, for data of so many axes."""
    d, c = axes, channels
    anywhere = [
        ["SiLU"],
        [f"GN_{4}_{c}", "SiLU"],
        [f"IN_{c}"],
        [f"LN_{c}"],
        [f"BN_{c}"],
        [f"AB_{c}_num-heads=2_num-groups=4"],
        [f"ViT_{c}_2_expansion=1"],
        ["UpS_2"],
        [f"RMSN_{c}", "GELU"],
        [f"Snake_{c}"],
        [f"SE_{c}_reduction=4"],
        ["PU_2", f"ChMean_{2**d}"],
        [{"residual": ["SiLU", f"GN_2_{c}"]}],
    ]
    convolutions = [
        [f"C{d}d_{c}_{c}_3_1_1"],
        [f"C{d}d_{c}_{c}_3_1_2_dilation=2"],
        [f"C{d}d_{c}_{c}_3_2_1"],
        [f"C{d}d_{c}_{c}_2_2"],
        [f"CT{d}d_{c}_{c}_4_2_1"],
        [{"residual": [f"GN_4_{c}", "SiLU", f"C{d}d_{c}_{c}_3_1_1"]}],
        [{"residual": [f"C{d}d_{c}_{c}_3_2_1", f"GN_4_{c}"], "shortcut": [f"C{d}d_{c}_{c}_1_2"]}],
    ]
    images = [
        [f"RB_{c}_{c}_num-groups=4"],
        [f"CNX_{c}_kernel-size=5"],
        [f"TAEB_{c}_{c}"],
        [f"GLUMB_{c}_expansion=2"],
        ["MaxP_3_2_1"],
        ["AvgP_3_1_1_count-include-pad=false"],
        ["UpB_2"],
        ["Blur_3"],
        [f"Swin_{c}_2_window-size=2_shift=1_expansion=1"],
        [f"C2d_{c}_{c}_3_1_1_padding-mode=reflect"],
        ["Pad2d_0_1_0_1", f"C2d_{c}_{c}_3_2"],
    ]
    return [*anywhere, *convolutions, *(images if axes == 2 else [])]


@st.composite
def structures(draw: st.DrawFn) -> tuple[list, Shape]:
    """Some layers, and an input that they take."""
    axes = draw(st.integers(1, 3))
    most = {1: 40, 2: 17, 3: 9}[axes]
    shape = (8, *(draw(st.integers(5, most)) for _ in range(axes)))
    document: list = []
    for _ in range(draw(st.integers(1, 5))):
        entries = draw(st.sampled_from(pool_of(axes, 8)))
        problems: list = []
        after = trace(items_of([*document, *entries]), shape, problems)
        if not problems and after.complete and math.prod(after.gives) < 40_000:
            document += entries
    return document or ["SiLU"], shape


@settings(max_examples=60)
@given(net=structures(), rows=st.integers(1, 5), seed=st.integers(0, 3))
def test_a_random_structure_gives_in_bands_what_it_gives_at_once(tmp_path_factory, net, rows, seed):
    document, shape = net
    items = items_of(document)
    module, x = built(items, seed), noise(shape)
    with torch.inference_mode():
        expected = module(x)
    found, ways = exactly(items, module, x, tmp_path_factory.getbasetemp(), rows)
    assert agrees(expected, found)
    assert not [way for way in ways if way.endswith("Whole") and not way.startswith(WHOLE)]


# ------------------------------------------------------------------------------------------------------ whole models

NET = {
    "encoder": ["C2d_3_16_3_2_1", "GN_4_16", "SiLU", "AB_16_num-groups=4", "C2d_16_8_3_2_1"],
    "decoder": ["C2d_4_32_3_1_1", "RB_32_32_num-groups=4", "AB_32_num-groups=4", "UpS_4", "C2d_32_32_3_1_1",
                "2*RB_32_32_num-groups=4", "GN_4_32", "SiLU", "C2d_32_3_3_1_1"],
    "shape": (3, 32, 32),
    "latents": {},
    "change": lambda weights: [tensor.div_(2) for tensor in weights.values()],  # as they are drawn
}  # fmt: skip


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory) -> Model:
    return load(make_model(tmp_path_factory.mktemp("exact") / "run", **NET), fuse="off")


def held_by(model: Model, z: Tensor) -> int:
    """The most bytes of tensors while latents are decoded."""
    with torch.inference_mode(), Tracker("cpu") as tracker:
        model.decode(z)
    return tracker.peak.bytes


def test_a_model_gives_the_same_on_little_memory(model, tmp_path):
    z = torch.randn(1, 4, 40, 24, generator=torch.Generator().manual_seed(0))
    memory = 3 << 20
    exact = ExactModel(model, memory, tmp_path)
    with torch.inference_mode():
        assert agrees(model.decode(z, (157, 95)), exact.decode(z, (157, 95)))
    assert exact.planner.fallen == {}
    assert held_by(exact, z) <= memory
    assert held_by(model, z) > 2 * memory


@pytest.mark.parametrize("bottleneck", ["KL", "FSQ_8.5.5.5"])
def test_what_a_bottleneck_gives_is_all_there(make_model, tmp_path, bottleneck):
    document = [*NET["encoder"][:-1], "C2d_16_8_3_2_1" if bottleneck == "KL" else "C2d_16_4_3_2_1"]
    plain = load(make_model(tmp_path / "run", **{**NET, "encoder": document}, bottleneck=bottleneck), fuse="off")
    exact = ExactModel(plain, 3 << 19, tmp_path, decodes=True)
    x = noise((3, 50, 61)).clamp(-1, 1).expand(2, -1, -1, -1)
    with torch.inference_mode():
        expected, found = plain.encoded(x), exact.encoded(x)
        assert agrees(plain.decode(expected.z), exact.decode(expected.z))
    if expected.indices is None:
        assert agrees(expected.z, found.z)
        assert all(agrees(*pair) for pair in zip(expected.posterior, found.posterior, strict=True))
    else:
        assert expected.indices.shape == found.indices.shape
        assert (expected.indices == found.indices).float().mean() > 0.99  # rounding may cross a border between codes


def test_too_little_memory_is_refused_with_the_least_that_would_do(model, tmp_path):
    z = torch.zeros(1, 4, 6, 30)
    with pytest.raises(ResourceError, match="is too little") as refused:
        ExactModel(model, 200 << 10, tmp_path).decode(z)
    least = int(str(parse_bytes(refused.value.problems[0].hint.rpartition(" ")[2])))
    assert 200 << 10 < least < 3 << 20
    assert ExactModel(model, least, tmp_path).decode(z).shape == (1, 3, 24, 120)
    with pytest.raises(ResourceError, match=refused.value.problems[0].hint):
        ExactModel(model, least - 2048, tmp_path).decode(z)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError(errno.ENOSPC, "full")])
def test_whatever_ends_a_run_no_file_is_left(model, tmp_path, monkeypatch, error):
    z, written = torch.zeros(1, 4, 8, 8), []
    write = Activation.write

    def failing(self: Activation, first: int, band: Tensor) -> None:
        written.append(first)
        assert not list(tmp_path.iterdir())  # a file without a name from the beginning
        if len(written) > 10:
            raise error
        write(self, first, band)

    monkeypatch.setattr(Activation, "write", failing)
    with pytest.raises((KeyboardInterrupt, SystemExit, OSError)):
        ExactModel(model, 1 << 20, tmp_path).decode(z)
    assert not list(tmp_path.iterdir())
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


def test_a_full_disk_is_told_before_anything_is_computed(flexvae, make_model, photos, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    run_dir = make_model(tmp_path / "run", **NET)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        ended = flexvae("infer", run_dir, photos / "b", tmp_path / "out", "--workers", 0, "--exact")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ended.exit_code == Exit.RESOURCES, ended.stderr
    assert "no space left" in ended.stderr
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------- commands


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_the_commands_give_the_same_images_exactly(flexvae, make_model, photos, tmp_path):
    run_dir = make_model(tmp_path / "run", **NET)
    exact = ("--exact", "--memory", "2MiB")
    assert flexvae("infer", run_dir, photos / "b", tmp_path / "plain", "--workers", 0).exit_code == 0
    ended = flexvae("infer", run_dir, photos / "b", tmp_path / "exact", "--workers", 0, "--json", *exact)
    assert ended.exit_code == 0, ended.stderr
    assert "at most 2.0 MiB of tensors beyond the model" in ended.stderr
    said = json.loads(ended.stdout)["exact"]
    assert (said["memory"], said["whole"]) == (2 << 20, [])
    encoded = flexvae("encode", run_dir, photos / "b", tmp_path / "latents", "--workers", 0, *exact)
    assert encoded.exit_code == 0, encoded.stderr
    decoded = flexvae("decode", run_dir, tmp_path / "latents", tmp_path / "images", *exact)
    assert decoded.exit_code == 0, decoded.stderr
    for name in ("c.png", "d.png"):
        plain = levels(tmp_path / "plain" / name)
        assert np.abs(plain - levels(tmp_path / "exact" / name)).max() <= 1
        assert np.abs(plain - levels(tmp_path / "images" / name)).max() <= 1


@pytest.mark.parametrize("axes", [1, 3])
def test_the_commands_give_the_same_sounds_and_volumes_exactly(flexvae, make_model, tmp_path, axes):
    d, size = axes, {1: (101,), 3: (13, 9, 11)}[axes]
    encoder = [f"C{d}d_2_8_3_2_1", "GN_2_8", "SiLU", f"C{d}d_8_4_3_2_1"]
    decoder = [f"C{d}d_2_8_3_1_1", "AB_8_num-groups=2", "UpS_4", f"C{d}d_8_2_3_1_1"]
    shape = (2, *(8,) * d)
    run_dir = make_model(tmp_path / "run", encoder=encoder, decoder=decoder, shape=shape, change=NET["change"])
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", noise((2, *size))[0].clamp(-1, 1).numpy())
    exact = ("--exact", "--memory", "512KiB" if axes == 3 else "64KiB")
    for command in (
        ("infer", run_dir, tmp_path / "in", tmp_path / "plain", "--workers", 0),
        ("infer", run_dir, tmp_path / "in", tmp_path / "exact", "--workers", 0, *exact),
        ("encode", run_dir, tmp_path / "in", tmp_path / "latents", "--workers", 0, *exact),
        ("decode", run_dir, tmp_path / "latents", tmp_path / "decoded", *exact),
    ):
        ended = flexvae(*command)
        assert ended.exit_code == 0, ended.stderr
    plain, *others = (np.load(tmp_path / name / "a.npy") for name in ("plain", "exact", "decoded"))
    assert plain.shape == (2, *size)
    assert all(np.abs(plain - other).max() <= TOLERANCE for other in others)


def test_codes_that_are_not_cut_are_named(flexvae, make_model, photos, tmp_path):
    decoder = [*NET["decoder"][:2], "SE_32", *NET["decoder"][2:]]
    run_dir = make_model(tmp_path / "run", **{**NET, "decoder": decoder})
    ended = flexvae("infer", run_dir, photos / "e", tmp_path / "out", "--workers", 0, "--exact")
    assert ended.exit_code == 0, ended.stderr
    assert "run on the whole tensor, not in bands: SE_32" in ended.stderr


def test_tiles_are_approximate_and_say_so(flexvae, make_model, photos, tmp_path):
    run_dir = make_model(tmp_path / "run", **NET)
    ended = flexvae("infer", run_dir, photos / "b", tmp_path / "out", "--workers", 0, "--tile", 32, "--json")
    assert ended.exit_code == 0, ended.stderr
    assert "approximate: tiles of 32 pixels" in ended.stderr
    approximate = json.loads(ended.stdout)["approximate"]
    assert approximate["tile"] == 32
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["approximate"] == approximate
    assert levels(tmp_path / "out" / "c.png").shape == (37, 50, 3)
    encoded = flexvae("encode", run_dir, photos / "b", tmp_path / "latents", "--workers", 0, "--tile", 32)
    assert encoded.exit_code == 0, encoded.stderr
    encoder, decoder = ("x".join(map(str, approximate["overlap"][part])) for part in ("encoder", "decoder"))
    assert f"{encoder} of them shared in the encoder, {decoder} of them shared in the decoder" in ended.stderr
    assert f"{encoder} of them shared in the encoder\n" in encoded.stderr
    assert json.loads((tmp_path / "latents" / "manifest.json").read_text())["latents"]["tile"] == 32


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("infer", ["--memory", "1GiB"], "add --exact"),
        ("infer", ["--exact", "--tile", "64"], "exclude each other"),
        ("decode", ["--exact", "--memory", "much"], "--memory wants a size such as '512MiB' or '24GiB', not 'much'"),
        ("encode", ["--exact", "--precision", "bf16"], "computes in fp32, not in bf16"),
    ],
)
def test_options_that_do_not_go_together(flexvae, tiny_model, photos, tmp_path, command, options, words):
    ended = flexvae(command, tiny_model, photos, tmp_path / "out", *options)
    assert ended.exit_code == Exit.USAGE
    assert words in ended.stderr
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ tiles


@pytest.fixture(scope="module")
def local_model(make_model, tmp_path_factory) -> Model:
    """A model without norms: its tiles differ from the whole near their borders alone."""
    decoder = ["C2d_4_8_3_1_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]
    encoder = ["C2d_3_8_3_2_1", "SiLU", "C2d_8_8_3_2_1"]
    run_dir = make_model(tmp_path_factory.mktemp("tiles") / "run", encoder=encoder, decoder=decoder, latents={})
    return load(run_dir, fuse="off")


def test_tiles_of_a_local_net_come_near_the_whole(local_model):
    model = local_model
    z = torch.randn(1, 4, 40, 30, generator=torch.Generator().manual_seed(0))
    tiled = TiledModel(model, 64)
    with torch.inference_mode():
        expected, found = model.decode(z), tiled.decode(z)
        cut = torch.cat([model.decode(each) for each in z.split(15, dim=2)], dim=2)
    assert tiled.overlap == {"encoder": (8, 8), "decoder": (16, 16)}  # 16 is 4 latents; 3 + 3 / 4 of them are seen
    error, seams = (expected - found).abs().max(), (expected - cut).abs().max()
    assert 0 < error < seams / 2
    assert torch.equal(TiledModel(model, 512).decode(z), expected)


@pytest.mark.parametrize("tile", [5, 8, 9, 12, 13, 20, 64, 199])
def test_tiles_share_half_of_one_at_most(local_model, tile):
    tiled = TiledModel(local_model, tile)
    assert all(tile <= n < tile + 4 for n in tiled.side)
    for shared in tiled.overlap.values():
        assert all(0 < over <= n / 2 for over, n in zip(shared, tiled.side, strict=True))


@pytest.mark.parametrize("tile", [1, 4])
def test_tiles_that_cannot_overlap_are_refused(local_model, tile):
    with pytest.raises(UsageError) as told:
        TiledModel(local_model, tile)
    assert "tiles of 4x4 are too small" in str(told.value)
    assert told.value.problems[0].hint == "use --tile 8 or more"


@given(size=st.tuples(st.integers(1, 90), st.integers(1, 90)), tile=st.integers(8, 64))
@settings(max_examples=20)
def test_tiles_give_every_size_back(local_model, size, tile):
    tiled = TiledModel(local_model, tile)
    x = noise((3, *size)).clamp(-1, 1)
    with torch.inference_mode():
        assert tiled(x).shape == x.shape
        assert tiled.encode(x).shape[1:] == tiled.latent_shape(size)


# ------------------------------------------------------------------------------------------------------------ sizes


@pytest.fixture(scope="module", params=[1, 2, 3])
def strided(request, make_model, tmp_path_factory) -> Model:
    """A model that reduces every axis of its data six times."""
    d = request.param
    encoder = [f"C{d}d_2_8_3_2_1", "SiLU", f"C{d}d_8_4_5_3_2"]
    decoder = [f"C{d}d_2_8_3_1_1", "UpS_6", f"C{d}d_8_2_3_1_1"]
    folder = tmp_path_factory.mktemp("sizes")
    run_dir = make_model(folder / "run", encoder=encoder, decoder=decoder, shape=(2, *(12,) * d), latents={})
    return load(run_dir, fuse="off")


@given(data=st.data())
@settings(max_examples=12)
def test_every_size_of_every_dimension_comes_back_through_latents_on_disk(strided, tmp_path_factory, data):
    d, folder = len(strided.net.shape) - 1, tmp_path_factory.getbasetemp()
    size = data.draw(st.tuples(*[st.integers(1, 40 if d < 3 else 14)] * d))
    x = noise((2, *size)).clamp(-1, 1)
    exact = ExactModel(strided, 1 << 20, folder, decodes=True)
    with torch.inference_mode():
        save_file({"latents": exact.encode(x)}, folder / "z.safetensors")
        z = load_file(folder / "z.safetensors")["latents"]
        assert tuple(z.shape[1:]) == strided.latent_shape(size)
        assert all(n % 6 == 0 for n in strided.net.fitting(size))
        assert agrees(strided(x), exact.decode(z, size))


def test_odd_sizes_come_back_through_the_commands(flexvae, make_model, tmp_path):
    run_dir = make_model(tmp_path / "run", **NET)
    sizes = [(1, 1), (1, 37), (31, 2), (33, 47), (64, 64), (5, 129)]
    (tmp_path / "in").mkdir()
    for index, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{index}.png")
    encoded = flexvae("encode", run_dir, tmp_path / "in", tmp_path / "latents", "--workers", 0, "--exact")
    assert encoded.exit_code == 0, encoded.stderr
    decoded = flexvae("decode", run_dir, tmp_path / "latents", tmp_path / "out")
    assert decoded.exit_code == 0, decoded.stderr
    assert [levels(tmp_path / "out" / f"{n}.png").shape[:2] for n in range(len(sizes))] == sizes


# ------------------------------------------------------------------------------------------------- what makes it fast


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moments_are_those_of_all_positions_however_far_their_mean_is(mean):
    x = torch.randn(3000, 24, generator=torch.Generator().manual_seed(0)) + mean
    moments = Moments(24)
    for part in x.split(700):
        moments.add(part)
    assert moments.count == len(x)
    wide = x.double()
    torch.testing.assert_close(moments.mean, wide.mean(0), rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(moments.squares / len(x), wide.var(0, correction=0), rtol=1e-5, atol=0)


@torch.inference_mode()
def test_upsampling_and_convolution_compute_as_one_where_the_memory_allows_it(tmp_path):
    items = items_of(["UpS_4", "C2d_128_128_3_1_1"])
    found = []
    for budget in (1 << 20, 64 << 20):
        stages = Planner(tmp_path).stages(items, built(items), twin_of(items), (128, 32, 8))
        found.append((fit(stages, budget) == 0, isinstance(stages[0].module.forward, Chain)))
    assert found == [(False, False), (True, True)]


def test_a_variable_is_set_for_libraries_that_are_not_there_yet(monkeypatch):
    monkeypatch.setenv("SET_BY_THE_USER", "theirs")
    monkeypatch.setenv("NEW", "")
    monkeypatch.delenv("NEW")
    before_torch("NEW", "1")
    assert "NEW" not in os.environ  # torch is here already
    monkeypatch.delitem(sys.modules, "torch")
    before_torch("NEW", "1")
    before_torch("SET_BY_THE_USER", "ours")
    assert (os.environ["NEW"], os.environ["SET_BY_THE_USER"]) == ("1", "theirs")
