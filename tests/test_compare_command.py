"""`flexvae compare`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from flexvae_cli.engine.evaluation.comparing import compare_pairs, differences
from flexvae_cli.engine.evaluation.measures import MEASURES
from flexvae_cli.engine.evaluation.result import MOST_BYTES
from flexvae_cli.errors import Exit

MEASURE = {measure.key: measure for measure in MEASURES}
PROTOCOL = {"data": {"images": 8, "sha256": "0" * 64}, "rounding": "none", "device": "cpu"}


def result(psnr: list[float | None], weights_hash: str = "1" * 64, **changes) -> dict:
    rows = [
        {"name": f"{index}.png", "size": [4, 4], "identical": value is None, "psnr": value, "mae": index / 100}
        for index, value in enumerate(psnr)
    ]
    model = {"path": "run", "weights": "ema", "weights_hash": weights_hash}
    return {"kind": "flexvae eval", "format": 1, "model": model, "protocol": PROTOCOL, "images": rows, **changes}


@pytest.fixture
def written(tmp_path):
    def write(name: str, content: object) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_a_clear_difference_names_the_better_one(flexvae, written):
    a = written("a.json", result([20, 21, 22, 23, 24, 25, 26, 27]))
    b = written("b.json", result([21, 22, 23.5, 24, 25, 26, 27, 28], "2" * 64))
    done = flexvae("compare", a, b, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    psnr = found["measures"]["psnr"]
    assert (psnr["mean_a"], psnr["mean_b"], psnr["difference"]) == (23.5, 24.5625, 1.0625)
    assert (psnr["wins_a"], psnr["wins_b"], psnr["ties"]) == (0, 8, 0)
    assert psnr["p"] == 2 / 256
    assert 1 <= psnr["interval"][0] < 1.0625 < psnr["interval"][1] < 1.5
    assert psnr["excludes_zero"]
    assert (psnr["better"], psnr["better_is"]) == ("b", "higher")
    assert found["measures"]["mae"]["better"] is None
    assert (found["measures"]["mae"]["ties"], found["measures"]["mae"]["p"]) == (8, 1.0)
    assert found["not_compared"] == ["ssim", "ms_ssim", "lpips", "rate"]
    assert (found["a"]["weights_hash"], found["b"]["weights_hash"]) == ("1" * 64, "2" * 64)
    table = flexvae("compare", b, a).stdout
    assert "A (higher)" in table
    assert "no clear difference" in table


def test_lower_is_better_for_errors():
    found = compare_pairs(MEASURE["mae"], [(0.1, 0.2 + k / 100) for k in range(8)])
    assert (found["better"], found["wins_a"], found["difference"] > 0) == ("a", 8, True)


def test_too_few_images_tell_nothing():
    found = compare_pairs(MEASURE["psnr"], [(20.0, 21.0), (20.0, 22.0), (20.0, 23.0)])
    assert found["excludes_zero"]  # of three equal signs, always
    assert (found["p"], found["better"]) == (0.25, None)
    alone = compare_pairs(MEASURE["psnr"], [(20.0, 21.0)])
    assert (alone["interval"], alone["excludes_zero"], alone["better"]) == (None, False, None)


def test_identical_images_count_as_wins_and_ranks_but_not_in_means():
    pairs = [(20.0, math.inf), (math.inf, math.inf), (20.0, 22.0), (20.0, 19.0)]
    found = compare_pairs(MEASURE["psnr"], pairs)
    assert (found["wins_a"], found["wins_b"], found["ties"]) == (1, 2, 1)
    assert (found["mean_a"], found["mean_b"], found["difference"]) == (20.0, 20.5, 0.5)
    assert found["p"] == 4 / 8  # ranks 3 and 2 of {1, 2, 3} are positive: sums of 5 or more, twice
    json.dumps(found, allow_nan=False)
    none = compare_pairs(MEASURE["psnr"], [(20.0, math.inf)] * 2)
    assert (none["difference"], none["interval"], none["wins_b"]) == (None, None, 2)


def test_differences_are_named_by_their_path():
    a, b = {"x": {"y": 1, "z": 2}, "w": "same"}, {"x": {"y": 3, "z": 2}, "w": "same", "v": None, "u": 0}
    assert differences(a, b) == [("x.y", 1, 3), ("u", None, 0)]


def test_another_protocol_is_refused_and_every_difference_named(flexvae, written):
    a = written("a.json", result([20.0, 21.0]))
    other = {**PROTOCOL, "rounding": "8bit", "data": {"images": 8, "sha256": "f" * 64}, "lpips": "vgg"}
    b = written("b.json", result([20.0, 21.0], protocol=other))
    refused = flexvae("compare", a, b)
    assert refused.exit_code == Exit.USAGE
    assert "rounding differs: none in" in refused.stderr
    assert "data.sha256 differs: 000000000000..." in refused.stderr
    assert "lpips differs: nothing in" in refused.stderr
    assert "cannot be ranked" in refused.stderr
    assert refused.stdout == ""


def test_the_same_stamp_over_other_images_is_refused(flexvae, written):
    a, b = written("a.json", result([20.0, 21.0])), written("b.json", result([20.0, 21.0, 22.0]))
    refused = flexvae("compare", a, b)
    assert refused.exit_code == Exit.DATA
    assert "holds other images" in refused.stderr


def rows(**changes) -> dict:
    return result([20.0], images=[{"name": "a", "size": [4, 4], "identical": False, **changes}])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is not a result of `flexvae eval`"),
        ('{"kind": "flexvae eval", "format": 1, "protocol": NaN}', "NaN"),
        ('{"kind": "flexvae eval", "format": 1, "protocol": 1e999}', "too large a number"),
        ("[" * 100_000, "nested deeper"),
        (result([20.0], format=2), "is of format 2"),
        (result([]), "images: list should have at least 1 item"),
        (result([20.0], protocol=3), "protocol"),
        (result([20.0], model={}), "model.path"),
        (rows(psnr="20"), "images.0.psnr"),
        (rows(psnr=1e300), "images.0.psnr"),
        (rows(size=[0, 4]), "images.0.size"),
        (rows(name=3), "images.0.name"),
        (rows(identical=1), "images.0.identical"),
        (result([20.0], images=[{"name": "a", "size": [4, 4], "identical": False}] * 2), "names an image twice"),
    ],
)
def test_what_is_no_result_is_refused_with_a_reason(flexvae, written, content, words):
    good, bad = written("good.json", result([20.0])), written("bad.json", content)
    for pair in ((good, bad), (bad, good)):
        refused = flexvae("compare", *pair)
        assert refused.exit_code == Exit.DATA
        assert words in refused.stderr
        assert "bad.json" in refused.stderr


def test_missing_empty_and_giant_files_are_refused(flexvae, written, tmp_path):
    good = written("good.json", result([20.0]))
    (tmp_path / "folder").mkdir()
    with (tmp_path / "giant.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)  # a hole, which takes no room
    for name, words in (("nothing", "no such result"), ("folder", "no such result"), ("giant.json", "bytes large")):
        refused = flexvae("compare", good, tmp_path / name)
        assert refused.exit_code == Exit.DATA
        assert words in refused.stderr


def test_two_models_on_the_same_photographs(flexvae, tiny_model, make_model, photos, tmp_path):
    other = make_model(tmp_path / "other", seed=1)
    for name, model in (("a", tiny_model), ("b", other)):
        assert flexvae("eval", model, photos, "--workers", 0, "--output", tmp_path / name).exit_code == 0
    done = flexvae("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    one, two = (json.loads((tmp_path / name / "eval.json").read_text()) for name in ("a", "b"))
    assert found["images"] == 5
    for key in ("psnr", "ssim", "mae", "rate"):
        assert found["measures"][key]["mean_a"] == pytest.approx(one["totals"][key]["mean"])
        assert found["measures"][key]["difference"] == pytest.approx(
            two["totals"][key]["mean"] - one["totals"][key]["mean"]
        )
    flexvae("eval", other, photos, "--workers", 0, "--output", tmp_path / "c", "--limit", 4)
    assert flexvae("compare", tmp_path / "a", tmp_path / "c").exit_code == Exit.USAGE


def test_comparing_needs_no_torch(written):
    path = written("a.json", result([20.0, 21.0]))
    script = f"""
import sys
from flexvae_cli.commands.compare import compare
from pathlib import Path
compare(Path({str(path)!r}), Path({str(path)!r}), True)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
