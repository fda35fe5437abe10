"""The picture of a net: what its boxes stand for, and files that appear whole or not at all."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from flexvae_cli.errors import ResourceError, UsageError
from flexvae_cli.inspection import inspect_target
from flexvae_cli.inspection.drawing import ROLES, draw, picture
from flexvae_cli.inspection.drawing_layout import Block, Group, elements, extent, role

SEED = Path(__file__).parents[1] / "configs" / "structures"
BODY = ["GN_2_8", "SiLU", "C2d_8_8_3_1_1"]


@pytest.fixture
def inspected(tmp_path):
    def inspect(entries: list, shape=(3, 16, 16)):
        path = tmp_path / "net.json"
        path.write_text(json.dumps(entries))
        return inspect_target(path, shape)

    return inspect


def labels(found):
    return [element.label for element in elements(found.parts[0].lines)]


def test_equal_layers_in_a_row_are_one_box(inspected):
    found = inspected(["C2d_3_8_1", "3*C2d_8_8_1", "SiLU", "C2d_8_8_1", "C2d_8_8_1_bias=false"])
    assert labels(found) == ["C2d_3_8_1", "3× C2d_8_8_1", "SiLU", "C2d_8_8_1", "C2d_8_8_1_bias=false"]


def test_layers_that_change_the_size_stay_apart(inspected):
    assert labels(inspected(["2*MaxP_2"])) == ["MaxP_2", "MaxP_2"]


def test_a_residual_entry_is_a_group_with_its_shortcut(inspected):
    found = inspected(["C2d_3_8_1", {"residual": BODY, "shortcut": ["C2d_8_8_1", "SiLU"]}])
    first, group = elements(found.parts[0].lines)
    assert isinstance(first, Block)
    assert isinstance(group, Group)
    assert [block.label for block in group.body] == ["GN_2_8", "SiLU", "C2d_8_8_3_1_1"]
    assert group.shortcut == ("C2d_8_8_1", "SiLU")


def test_equal_residual_entries_in_a_row_are_one_group(inspected):
    found = inspected(["C2d_3_8_1", {"repeat": 4, "layers": [{"residual": BODY}]}, {"residual": ["SiLU"]}])
    assert labels(found) == ["C2d_3_8_1", "4×", ""]


def test_a_residual_entry_inside_another(inspected):
    (outer,) = elements(
        inspected([{"residual": ["C2d_3_3_1", {"residual": ["SiLU"]}, "C2d_3_8_1"], "shortcut": ["C2d_3_8_1"]}])
        .parts[0]
        .lines
    )
    assert [type(element) for element in outer.body] == [Block, Group, Block]


ROLE_OF = {
    "C2d_32_8_3_1_1": "convolution",
    "VAERB_32_32": "block",
    "VAEA_32": "attention",
    "GN_4_32": "normalisation",
    "SiLU": "activation",
    "MaxP_2": "downsampling",
    "C2d_32_8_3_2_1": "downsampling",
    "UpS_2": "upsampling",
}


@pytest.mark.parametrize("code", ROLE_OF)
def test_the_role_of_a_layer_follows_from_what_it_does(inspected, code):
    (line,) = inspected([code], (32, 16, 16)).parts[0].lines
    assert role(line) == ROLE_OF[code]


def test_colours_differ_in_grey():
    def grey(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    told_apart = ("activation", "convolution", "downsampling", "block", "attention")
    values = [grey(ROLES[name]) for name in told_apart]
    assert all(light - dark > 25 for light, dark in pairwise(values))


def test_boxes_are_as_tall_as_the_resolution():
    full, small = extent((3, 256, 256), 256), extent((3, 16, 64), 256)
    assert small[0] == pytest.approx(full[0] / 4)
    assert small[1][0] == pytest.approx(full[1][0] / 2)
    assert extent((3, 256), 256)[0] == full[0]


@pytest.mark.parametrize(
    ("entries", "shape"),
    [
        (["SiLU"], (1, 4)),
        (["SiLU", "UpS_2"], (2, 3, 4, 5)),
        (["C2d_3_8_3_2_1", {"residual": [{"residual": ["2*C2d_8_8_1"]}], "shortcut": ["SiLU"]}], (3, 9, 40)),
    ],
)
def test_nets_of_every_dimension_are_drawn(inspected, entries, shape):
    width, height = picture(inspected(entries, shape)).get_size_inches()
    assert 0 < height < 6
    assert 0 < width < 8


def test_a_whole_autoencoder_fits_a_page(tmp_path):
    config = tmp_path / "seed.toml"
    config.write_text(
        f'[model]\nencoder = "{SEED}/encoder.json"\ndecoder = "{SEED}/decoder.json"\n'
        '[data]\nsource = "builtin:scenery"\ninput = "3x256x256"\n[train]\nrun_dir = "run"\nmax_steps = 1\n'
    )
    path = tmp_path / "net.svg"
    draw(inspect_target(config), path)
    text = path.read_text()
    for words in ("encoder", "decoder", "latent", "4×16×16", "3× VAERB_256_256", "KL", "attention", "256×256"):
        assert f"<!-- {words}" in text
    assert picture(inspect_target(config)).get_size_inches()[0] < 12


def test_every_text_of_the_picture_lies_inside_it(inspected):
    figure = picture(
        inspected(["C2d_3_8_1", {"residual": BODY, "shortcut": ["C2d_8_8_1"]}, "C2d_8_8_3_2_1_bias=false"])
    )
    width, height = figure.bbox.width, figure.bbox.height
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= height, text.get_text()


def test_a_png_is_readable_and_coloured(inspected, tmp_path):
    path = tmp_path / "net.png"
    draw(inspected(["C2d_3_8_3_1_1", "SiLU"]), path)
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
        assert image.width > 300
        red, green, blue = (int(ROLES["convolution"][i : i + 2], 16) for i in (1, 3, 5))
        assert (red, green, blue, 255) in image.get_flattened_data()


def test_the_same_net_gives_the_same_svg(inspected, tmp_path):
    found = inspected(["C2d_3_8_3_1_1", "SiLU"])
    for name in ("one.svg", "two.svg"):
        draw(found, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize("name", ["net.jpg", "net", "net.svg.gz"])
def test_another_kind_of_file_is_refused(inspected, tmp_path, name):
    with pytest.raises(UsageError, match=r"a picture is \.svg or \.png"):
        draw(inspected(["SiLU"]), tmp_path / name)


def test_a_file_that_cannot_be_written_leaves_nothing(inspected, tmp_path):
    with pytest.raises(ResourceError, match="cannot be written"):
        draw(inspected(["SiLU"]), tmp_path / "none" / "net.svg")
    (tmp_path / "taken.svg").mkdir()
    with pytest.raises(ResourceError):
        draw(inspected(["SiLU"]), tmp_path / "taken.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "taken.svg"]


def test_a_net_that_is_too_long_is_refused(inspected):
    with pytest.raises(UsageError, match="a picture of 302 boxes; the most is 300"):
        picture(inspected([{"repeat": 151, "layers": ["SiLU", "C2d_3_3_1"]}]))
