"""Signals, volumes and other images through every command: train a few steps, then use the model on real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from flexvae_cli.config import load_config, shipped_configs
from flexvae_cli.plan import make_plan

nibabel = pytest.importorskip("nibabel")
soundfile = pytest.importorskip("soundfile")
REAL = Path(__file__).parent / "data" / "real"


class Case(NamedTuple):
    """Data of some dimension, and a net for it.

    Attributes:
        source: below `tests/data/real`.
        shape: of a training sample.
        encoder, decoder: structures.
        more: of the config.
        suffix: of what comes out.
        size: for `sample`.
    """

    source: str
    shape: str
    encoder: list[str]
    decoder: list[str]
    more: str
    suffix: str
    size: str


def axes(dims: int, channels: int) -> tuple[list[str], list[str]]:
    """A tiny autoencoder of that dimension, 4 times smaller."""
    c = f"C{dims}d"
    return [f"{c}_{channels}_8_4_4", "SiLU", f"{c}_8_4_1"], [
        f"{c}_2_8_3_1_1",
        "SiLU",
        "UpS_4",
        f"{c}_8_{channels}_3_1_1",
    ]


CASES = {
    "audio": Case("audio", "1x512", *axes(1, 1), '[[loss.term]]\nname = "stft"\nwindows = [64, 128]\n', ".wav", "1000"),
    "ecg": Case("ecg", "1x256", *axes(1, 1), "", ".npy", "300"),
    "mri": Case("mri", "1x12x12x12", *axes(3, 1), "[loss]\nssim_metrics = true\n", ".nii.gz", "8x12x16"),
    "ct": Case("ct", "1x8x8x8", *axes(3, 1), "", ".npy", "8x8x8"),
    "multichannel": Case("multichannel", "4x16x16", *axes(2, 4), "", ".png", "16x24"),
    "grey": Case("grey", "1x16x16", *axes(2, 1), "", ".png", "16x24"),
}
DATA = {
    "ecg": 'reader = "arrays"\nlow = 0\nhigh = 2047\n',
    "ct": 'reader = "arrays"\nlow = 0\nhigh = 2000\nvalidation = 0.0\n',
}


@pytest.fixture
def trained(flexvae: Any, tmp_path: Path) -> Any:
    """Trains the net of a case for a few steps; returns its run."""

    def train(name: str) -> Path:
        case = CASES[name]
        for part in ("encoder", "decoder"):
            (tmp_path / f"{part}.json").write_text(json.dumps(getattr(case, part)))
        (tmp_path / "c.toml").write_text(
            f'[model]\nencoder = "encoder.json"\ndecoder = "decoder.json"\n'
            f'[data]\nsource = "{REAL / case.source}"\ninput = "{case.shape}"\nworkers = 0\n{DATA.get(name, "")}'
            f'{case.more}[train]\nrun_dir = "run"\nmax_steps = 2\nbatch_size = 2\npreview_every = 2\ndevice = "cpu"\n'
        )
        done = flexvae("train", "--config", tmp_path / "c.toml")
        assert done.exit_code == 0, done.stderr
        return tmp_path / "run"

    return train


def succeeds(flexvae: Any, *arguments: object) -> Any:
    done = flexvae(*arguments)
    assert done.exit_code == 0, (arguments, done.stderr)
    return done


def outputs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("metrics.json", "sheet.png", "latents"))


@pytest.mark.parametrize("name", CASES)
def test_every_command_works_on_data_of_every_dimension(name: str, flexvae: Any, trained: Any, tmp_path: Path) -> None:
    case, run = CASES[name], trained(name)
    source = REAL / case.source
    assert (run / "previews").is_dir()
    assert any((run / "previews").iterdir())
    succeeds(flexvae, "infer", run, source, tmp_path / "out", "--workers", 0)
    succeeds(flexvae, "encode", run, source, tmp_path / "latents", "--workers", 0)
    succeeds(flexvae, "decode", run, tmp_path / "latents", tmp_path / "decoded")
    assert outputs(tmp_path / "decoded") == outputs(tmp_path / "out")
    for file in outputs(tmp_path / "out"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "decoded" / file).read_bytes(), file
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["count"] == len(list(source.iterdir()))
    assert all(len(row["size"]) == case.shape.count("x") for row in metrics["images"])
    assert all((row["ssim"] is None) == (case.shape.count("x") == 1) for row in metrics["images"])
    succeeds(flexvae, "sample", run, tmp_path / "samples", "-n", 2, "--size", case.size)
    kind = case.suffix if name not in ("ecg", "ct") else ".npy"
    assert outputs(tmp_path / "samples") == [f"sample-000{kind}", f"sample-001{kind}"]
    files = sorted(source.iterdir())
    succeeds(flexvae, "interpolate", run, files[0], files[-1], tmp_path / "way", "--steps", 2)
    found = json.loads(
        succeeds(flexvae, "eval", run, source, "--workers", 0, "--json", "--output", tmp_path / "e").stdout
    )
    assert found["count"] == len(files)
    assert len((tmp_path / "e/eval.csv").read_text().splitlines()) == len(files) + 1
    assert len(json.loads(succeeds(flexvae, "stats", run, source, "--workers", 0, "--json").stdout)["channels"]) == 2
    shape = [int(n) for n in case.shape.split("x")]
    assert json.loads(succeeds(flexvae, "inspect", run, "--json").stdout)["input"] == shape
    succeeds(flexvae, "report", run)


def test_a_sound_keeps_its_rate_and_a_volume_its_place(flexvae: Any, trained: Any, tmp_path: Path) -> None:
    run = trained("audio")
    succeeds(flexvae, "infer", run, REAL / "audio", tmp_path / "out", "--workers", 0)
    for path in (REAL / "audio").iterdir():
        before, after = soundfile.info(path), soundfile.info(tmp_path / "out" / path.name)
        for key in ("samplerate", "frames", "channels", "subtype"):
            assert getattr(before, key) == getattr(after, key)
    assert (
        json.loads((run / "ckpt").glob("*/model.json").__next__().read_text())["preprocessing"]["parameters"]["rate"]
        == 16_000
    )


def test_a_volume_keeps_its_affine_and_its_type(flexvae: Any, trained: Any, tmp_path: Path) -> None:
    succeeds(flexvae, "infer", trained("mri"), REAL / "mri", tmp_path / "out", "--workers", 0)
    for path in (REAL / "mri").iterdir():
        before, after = nibabel.load(path), nibabel.load(tmp_path / "out" / path.name)
        np.testing.assert_array_equal(before.affine, after.affine)
        assert before.shape == after.shape
        assert before.get_data_dtype() == after.get_data_dtype()


def test_a_model_of_sounds_takes_arrays_too(flexvae: Any, trained: Any, tmp_path: Path) -> None:
    run = trained("audio")
    np.save(tmp_path / "a.npy", np.sin(np.arange(700, dtype=np.float32) / 5))
    succeeds(flexvae, "infer", run, tmp_path / "a.npy", tmp_path / "out", "--workers", 0)
    assert np.load(tmp_path / "out/a.npy").shape == (700,)


def test_bad_files_are_left_out_and_reported(flexvae: Any, trained: Any, tmp_path: Path) -> None:
    run = trained("audio")
    folder = tmp_path / "sounds"
    shutil.copytree(REAL / "audio", folder)
    (folder / "half.wav").write_bytes((folder / "sn_zome.wav").read_bytes()[:3000])
    (folder / "page.wav").write_text("<html>not found</html>")
    done = succeeds(flexvae, "infer", run, folder, tmp_path / "out", "--workers", 0)
    bad = [json.loads(line) for line in (tmp_path / "out/bad_files.jsonl").read_text().splitlines()]
    assert [each["name"] for each in bad] == ["half.wav", "page.wav"]
    assert "is truncated" in bad[0]["reason"]
    assert "half.wav is truncated" in done.stderr
    for path in folder.iterdir():
        if path.stem not in ("half", "page"):
            path.unlink()
    assert flexvae("infer", run, folder, tmp_path / "none", "--workers", 0).exit_code == 3


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["data.reader=volumes"], "volumes gives samples of 3 axes, data.input has 1"),
        (["data.reader=audoi"], "unknown reader 'audoi'; did you mean 'audio'?"),
        (
            ["data.reader=audio", "data.rte=3"],
            "data.rte: is neither a setting of [data] nor a parameter of the reader; did you mean 'rate'",
        ),
        (["data.reader=audio", "data.rate=0"], "data.rate: audio wants a whole number, at least 1"),
        (["data.resize=none"], "data.resize has no meaning for a signal"),
        (["loss.ssim_metrics=true"], "ssim works on 2-D and 3-D data; the input is 1x512"),
        (["data.source=builtin:scenery"], "data.input: images are channels x height x width"),
    ],
)
def test_what_a_dimension_has_no_meaning_for_is_refused_before_anything_is_read(
    flexvae: Any, trained: Any, tmp_path: Path, overrides: list[str], what: str
) -> None:
    case = CASES["audio"]
    for part in ("encoder", "decoder"):
        (tmp_path / f"{part}.json").write_text(json.dumps(getattr(case, part)))
    (tmp_path / "c.toml").write_text(
        '[model]\nencoder = "encoder.json"\ndecoder = "decoder.json"\n'
        f'[data]\nsource = "{REAL / "audio"}"\ninput = "1x512"\n[train]\nrun_dir = "run"\nmax_steps = 2\n'
    )
    sets = [part for override in overrides for part in ("--set", override)]
    done = flexvae("train", "--config", tmp_path / "c.toml", *sets)
    assert done.exit_code == 2
    assert what in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_of_data_has_its_line(flexvae: Any, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[model]\nencoder = "e"\ndecoder = "d"\n[data]\nsource = "x"\ninput = "1x8"\nrate = 3\n'
    )
    done = flexvae("config", "check", "--config", tmp_path / "c.toml")
    assert done.exit_code == 2
    assert "c.toml:7: data.rate is not a setting of [data]" in done.stderr


@pytest.mark.parametrize("name", ["audio-1d", "volume-3d", "multichannel", "grey"])
def test_the_shipped_configs_fit_their_nets(name: str) -> None:
    plan = make_plan(load_config(shipped_configs() / f"{name}.toml"))
    assert plan.decoder.gives == plan.settings.data.input
    assert Path(plan.settings.data.source).is_dir()
