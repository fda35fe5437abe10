from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tomli
from typer.testing import CliRunner, Result

from flexvae_cli.commands.config import app
from flexvae_cli.config import load_config, shipped_configs
from flexvae_cli.config.shipped import files_of, summaries, write_out
from flexvae_cli.errors import UsageError

STRUCTURES = shipped_configs() / "structures"
CONFIG = """\
# seed: the founding net
extends = "base.toml"
[model]
encoder = "structures/encoder.json"
decoder = "structures/decoder.json"
[data]
source = "builtin:scenery"
input = "3x64x64"
"""
BASE = "# base\n[train]\nrun_dir = 'runs/seed'\nmax_steps = 10\n"


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped configs, and a working directory beside it."""
    folder = tmp_path / "shipped"
    (folder / "structures").mkdir(parents=True)
    for name in ("encoder.json", "decoder.json"):
        shutil.copy(STRUCTURES / name, folder / "structures" / name)
    (folder / "seed.toml").write_text(CONFIG)
    (folder / "base.toml").write_text(BASE)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("flexvae_cli.config.shipped.shipped_configs", lambda: folder)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def problem(*arguments: str) -> str:
    error = run(*arguments).exception
    assert isinstance(error, UsageError)
    return str(error)


def test_show_prints_what_would_run(configs: Path) -> None:
    result = run(
        "show", "--config", str(configs / "seed.toml"), "--set", "optimizer.lr=1", "--set", "data.source=a\u00e9\x7f"
    )
    assert result.exit_code == 0
    document = load_config(configs / "seed.toml", ["optimizer.lr=1", "data.source=a\u00e9\x7f"]).document
    assert tomli.loads(result.stdout) == document
    assert document["train"]["run_dir"] == str(configs / "runs/seed")


def test_show_json(configs: Path) -> None:
    result = run("show", "--config", str(configs / "seed.toml"), "--json")
    assert json.loads(result.stdout) == load_config(configs / "seed.toml").document


def test_show_without_a_config(configs: Path) -> None:
    assert "flexvae config new quickstart" in problem("show")
    (Path.cwd() / "flexvae.toml").write_text(CONFIG.replace("base.toml", str(configs / "base.toml")))
    assert tomli.loads(run("show").stdout)["data"]["input"] == "3x64x64"


def test_check(configs: Path) -> None:
    result = run("check", "--config", str(configs / "seed.toml"))
    assert result.stdout == f"{configs / 'seed.toml'} is fine: 3x64x64 -> latent 4x4x4, 41,405,671 parameters\n"
    told = json.loads(run("check", "--config", str(configs / "seed.toml"), "--json").stdout)
    assert (told["latent"], told["parameters"]) == ("4x4x4", 41_405_671)


def test_check_reads_the_structures(configs: Path) -> None:
    (configs / "structures" / "decoder.json").write_text('["Nope"]')
    assert "decoder.json" in problem("check", "--config", str(configs / "seed.toml"))


def test_schema() -> None:
    assert "extends" in json.loads(run("schema").stdout)["properties"]


def test_new_writes_the_config_and_all_that_it_needs(configs: Path) -> None:
    result = run("new", "seed")
    files = [
        "configs/seed.toml",
        "configs/base.toml",
        "configs/structures/encoder.json",
        "configs/structures/decoder.json",
    ]
    assert result.stderr.splitlines() == [
        *(f"wrote {f}" for f in files),
        "next: flexvae train --config configs/seed.toml",
    ]
    for file in files:
        assert Path(file).read_bytes() == (configs / file.removeprefix("configs/")).read_bytes()
    assert load_config(Path("configs/seed.toml")).settings.data.input == (3, 64, 64)


def test_new_into_a_folder(configs: Path) -> None:
    assert "next: flexvae train --config there/configs/seed.toml" in run("new", "seed", "--into", "there").stderr
    assert Path("there/configs/structures/encoder.json").is_file()


def test_new_keeps_what_is_there_and_differs(configs: Path) -> None:
    run("new", "seed")
    assert run("new", "seed").exit_code == 0
    Path("configs/seed.toml").write_text("mine")
    Path("configs/base.toml").write_text("mine")
    Path("configs/structures/encoder.json").unlink()
    told = problem("new", "seed")
    assert told.count("is there already and differs") == 2
    assert "--force" in told
    assert Path("configs/seed.toml").read_text() == "mine"
    assert not Path("configs/structures/encoder.json").exists()
    assert run("new", "seed", "--force").exit_code == 0
    assert Path("configs/seed.toml").read_text() == CONFIG


def test_new_where_nothing_can_be_written(configs: Path) -> None:
    Path("configs").write_text("a file")
    assert "configs" in problem("new", "seed")


def test_new_of_an_unknown_name(configs: Path) -> None:
    told = problem("new", "sed")
    assert "no config 'sed' ships with FlexVAE; did you mean 'seed'?" in told
    assert "base: base; seed: seed: the founding net" in told
    assert "no config '../shipped/seed'" in problem("new", "../shipped/seed")
    assert "flexvae config new --list" in problem("new")


def test_new_list(configs: Path) -> None:
    assert run("new", "--list").stdout == "base: base\nseed: seed: the founding net\n"


@pytest.mark.parametrize("name", summaries())
def test_every_shipped_config_says_what_it_is_for_and_can_be_written_out(name: str, tmp_path: Path) -> None:
    assert summaries()[name]
    written = write_out(name, tmp_path)
    assert [path.relative_to(tmp_path / "configs") for path in written] == files_of(name)
    shipped, copy = load_config(shipped_configs() / f"{name}.toml"), load_config(written[0])
    assert copy.settings.optimizer == shipped.settings.optimizer
    assert copy.settings.model.encoder.is_file()
    assert copy.settings.model.decoder.is_file()
