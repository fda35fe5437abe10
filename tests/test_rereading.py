"""Files read as a config says, where that is not how a model's training read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.rereading import reread
from flexvae_cli.errors import Exit, UsageError

REAL = Path(__file__).parent / "data" / "real"
CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "unused"
input = "1x8x8x8"
[train]
run_dir = "run"
max_steps = 1
"""


@pytest.fixture
def volumes(make_model, tmp_path, monkeypatch):
    """A model of volumes and a config of its run, in the working directory."""
    monkeypatch.chdir(tmp_path)
    make_model(
        tmp_path / "run",
        encoder=["C3d_1_4_4_4", "SiLU", "C3d_4_4_1"],
        decoder=["C3d_2_4_3_1_1", "SiLU", "UpS_4", "C3d_4_1_3_1_1"],
        shape=(1, 8, 8, 8),
        preprocessing={"max_pixels": 10**7, "reader": "volumes", "parameters": {"range": "type"}},
    )
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


def inferred(flexvae, source, out, *sets):
    """The bytes of what comes out, by name."""
    options = [part for each in sets for part in ("--set", each)]
    done = flexvae("infer", "run", source, out, "--config", "c.toml", "--workers", 0, *options)
    assert done.exit_code == 0, done.stderr
    return {path.name: path.read_bytes() for path in Path(out).iterdir() if path.suffix in (".gz", ".npz")}


def test_the_range_and_the_reader_of_a_config_are_those_that_infer_and_encode_read_with(flexvae, volumes):
    ct = volumes / "ct"
    ct.mkdir()
    with np.load(REAL / "ct" / "stent.npz") as file:
        whole = next(file[key] for key in file if file[key].ndim == 3)
    np.savez(ct / "a.npz", x=whole[20:36, 20:36, 20:36])
    refused = flexvae("infer", "run", ct, "none", "--workers", 0)
    assert refused.exit_code == Exit.DATA
    assert "whose range is not known" in refused.stderr
    ranges = [("data.reader=arrays", "data.low=0", f"data.high={high}") for high in (2000, 4000)]
    outs = [inferred(flexvae, ct, f"out-{number}", *sets) for number, sets in enumerate(ranges)]
    assert outs[0] != outs[1]
    sets = [part for each in ranges[0] for part in ("--set", each)]
    done = flexvae("encode", "run", ct, "latents", "--config", "c.toml", "--workers", 0, *sets)
    assert done.exit_code == 0, done.stderr
    recorded = json.loads(Path("latents/manifest.json").read_text())["preprocessing"]
    assert (recorded["reader"], recorded["parameters"]["high"]) == ("arrays", 2000)
    scores = [
        json.loads(flexvae("eval", "run", ct, "--json", "--workers", 0, "--config", "c.toml", *each).stdout)["totals"]
        for each in (sets, [*sets, "--set", "data.high=4000"])
    ]
    assert scores[0] != scores[1]
    assert flexvae("decode", "run", "latents", "decoded").exit_code == 0
    assert Path("decoded/a.npz").read_bytes() == outs[0]["a.npz"]


def test_pictures_come_back_in_the_unit_that_a_config_reads_them_in(flexvae, make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model(
        tmp_path / "run",
        encoder=["C2d_1_4_4_4", "SiLU", "C2d_4_4_1"],
        decoder=["C2d_2_4_3_1_1", "SiLU", "UpS_4", "C2d_4_1_3_1_1"],
        shape=(1, 8, 8),
    )
    Path("c.toml").write_text(CONFIG.replace("1x8x8x8", "1x8x8"))
    Path("in").mkdir()
    Image.fromarray(np.arange(192, dtype=np.float32).reshape(12, 16) * 20).save("in/a.tif")
    told = ("--config", "c.toml", "--set", "data.reader=images", "--set", "data.low=0", "--set", "data.high=4000")
    for command in (
        ("infer", "run", "in", "out", "--workers", 0, *told),
        ("encode", "run", "in", "latents", "--workers", 0, *told),
        ("decode", "run", "latents", "decoded"),
    ):
        done = flexvae(*command)
        assert done.exit_code == 0, (command, done.stderr)
    assert Path("out/a.tif").read_bytes() == Path("decoded/a.tif").read_bytes()


def test_the_volume_of_a_config_is_the_one_that_is_read(flexvae, volumes):
    nibabel = pytest.importorskip("nibabel")
    one = nibabel.load(REAL / "mri" / "left.nii.gz")
    crop = np.asarray(one.dataobj)[20:32, 20:32, 20:32]
    for folder, numbers in (("four", np.stack([crop[::-1], crop], axis=3)), ("three", crop)):
        (volumes / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(numbers, one.affine), volumes / folder / "a.nii.gz")
    refused = flexvae("infer", "run", "four", "none", "--workers", 0)
    assert refused.exit_code == Exit.DATA
    assert "data.volume" in refused.stderr
    named = ("data.reader=volumes", "data.volume=1")
    numbers = {}
    for source, sets in (("four", named), ("three", ())):
        inferred(flexvae, source, f"of-{source}", *sets)
        numbers[source] = np.asarray(nibabel.load(Path(f"of-{source}") / "a.nii.gz").dataobj)
    assert np.array_equal(numbers["four"], numbers["three"])


def test_what_would_be_another_sample_is_refused(flexvae, volumes):
    shutil.copytree(REAL / "mri", volumes / "mri")
    for given, said in (
        ("data.input=2x8x8x8", "data.input"),
        ("data.input=1x64x64", "data.input"),
        ("data.reader=audio", "data.reader"),
        ("data.reader=volumse", "volumes"),
    ):
        done = flexvae("infer", "run", "mri", "none", "--config", "c.toml", "--set", given, "--workers", 0)
        assert (done.exit_code, said in done.stderr) == (Exit.USAGE, True), (given, done.stderr)
        assert not Path("none").exists() or not any(Path("none").iterdir())
    done = flexvae("infer", "run", "mri", "none", "--config", "c.toml", "--set", "data.reader=arrays", "--workers", 0)
    assert (done.exit_code, "for the reader arrays" in done.stderr) == (Exit.DATA, True)


def sounds(**parameters):
    how = {"background": "#ffffff", "draft": True, "reader": "audio", "parameters": {"rate": 16000} | parameters}
    return {"input": [1, 1024], "preprocessing": how}


def table(**values):
    return DataTable(source="x", **{"input": "1x1024", **values})


def test_the_rate_stays_that_of_the_training_and_all_else_is_as_the_config_says():
    recorded = sounds(resample=True)["preprocessing"]
    assert reread(sounds(resample=True), table())["preprocessing"] == recorded
    kept = reread(sounds(resample=True), table(reader="audio", mix=True))["preprocessing"]
    assert kept["parameters"] == {"rate": 16000, "resample": False, "mix": True}
    with pytest.raises(UsageError, match=r"data\.rate.*16000"):
        reread(sounds(), table(reader="audio", rate=8000))
    assert reread(sounds(), table(input="1x4096", max_pixels=99))["preprocessing"]["max_pixels"] == 99


def test_a_config_that_says_the_same_changes_nothing():
    whole = sounds(resample=False, mix=False)
    assert reread(whole, table(reader="audio", rate=16000)) == whole
    image = {"input": [3, 16, 16], "preprocessing": {"exif": True}}
    same = reread(image, DataTable(source="x", input="3x16x16", reader="images"))
    assert same == image
    turned = reread(image, DataTable(source="x", input="3x16x16", exif=False, background="#000000"))
    assert turned["preprocessing"] == {"exif": False, "background": "#000000"}
