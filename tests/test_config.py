from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from flexvae_cli.config import find_config, json_schema, load_config, shipped_configs
from flexvae_cli.config.layers import MAX_CHAIN
from flexvae_cli.config.reference import reference
from flexvae_cli.config.settings import Settings
from flexvae_cli.config.toml_writer import to_toml
from flexvae_cli.errors import UsageError

NIGHTLY = os.environ.get("FLEXVAE_NIGHTLY") == "1"
MUTATIONS = 30_000 * (100 if NIGHTLY else 1)  # with the 20,000 of test_structure.py, 50,000 malformed texts

GOOD = """\
# what it is for
[model]
encoder = "structures/encoder.json"
decoder = "structures/decoder.json"
[data]
source = "photos"
input = "3x64x64"
[optimizer]
lr = 1e-3
[train]
run_dir = "runs/a"
max_steps = 10
"""


def write(path: Path, text: str | bytes = GOOD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def messages(path: Path, *overrides: str) -> list[str]:
    """The problems of a config, one text each, the folder cut off."""
    with pytest.raises(UsageError) as caught:
        load_config(path, overrides)
    return [str(p).replace(f"{path.parent}{os.sep}", "") for p in caught.value.problems]


def test_a_good_config(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "c.toml"))
    assert config.path == tmp_path / "c.toml"
    assert config.settings.model.encoder == tmp_path / "structures/encoder.json"
    assert config.settings.data.source == str(tmp_path / "photos")
    assert config.settings.data.input == (3, 64, 64)
    assert config.settings.optimizer.lr == 1e-3
    assert config.settings.train.batch_size == 8
    assert config.document["train"] == {"run_dir": str(tmp_path / "runs/a"), "max_steps": 10}


def test_the_document_loads_back_from_json_and_toml(tmp_path: Path) -> None:
    text = GOOD + 'device = "cuda:1"\n[plugins.prefer]\n"a b" = "flexvae-\\"x\\""\n[mem]\nmemory = "2GiB"\n'
    config = load_config(write(tmp_path / "c.toml", text), ["optimizer.betas=[0.5, 0.9]", "data.validation=val"])
    assert Settings.model_validate(json.loads(json.dumps(config.document))) == config.settings
    assert load_config(write(tmp_path / "elsewhere" / "d.toml", to_toml(config.document))).settings == config.settings


def test_text_that_is_still_toml(tmp_path: Path) -> None:
    plain = load_config(write(tmp_path / "c.toml")).settings
    assert load_config(write(tmp_path / "bom.toml", b"\xef\xbb\xbf" + GOOD.encode())).settings == plain
    assert load_config(write(tmp_path / "crlf.toml", GOOD.replace("\n", "\r\n"))).settings == plain


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


BAD_KEYS = [
    (
        changed("lr = 1e-3", "lrr = 1e-3"),
        "c.toml:9: optimizer.lrr is not a setting of [optimizer]; did you mean optimizer.lr?",
    ),
    (
        changed("[optimizer]", "[optimiser]"),
        "c.toml:8: [optimiser] is not a table of a config; did you mean [optimizer]?",
    ),
    (
        changed("max_steps = 10", "max_steps = 10\nlr = 1"),
        "c.toml:13: train.lr is not a setting of [train]; lr is a setting of [optimizer]",
    ),
    (
        changed("lr = 1e-3", "beta = 1"),
        "c.toml:9: optimizer.beta is not a setting of [optimizer]; beta is a setting of [loss]"
        "; did you mean optimizer.betas?",
    ),
    (
        changed("lr = 1e-3", "qqq = 1"),
        "c.toml:9: optimizer.qqq is not a setting of [optimizer]\nhint: [optimizer] has name, lr, betas, eps, ",
    ),
    ("lr = 1\n" + GOOD, "c.toml:1: lr stands outside the tables; lr is a setting of [optimizer]"),
    (
        changed('source = "photos"\n', ""),
        "c.toml:5: [data] needs source (a folder of images, sounds, volumes or arrays, or of tars of them, one file, "
        "or `builtin:scenery`)",
    ),
    (
        changed('[train]\nrun_dir = "runs/a"\nmax_steps = 10\n', ""),
        "c.toml: [train] needs run_dir (where the run is kept: checkpoints, metrics, previews, log)",
    ),
    (changed("max_steps = 10\n", ""), "c.toml:10: [train] wants max_steps or epochs, and only one of them"),
    (GOOD + "epochs = 1\n", "c.toml:10: [train] wants max_steps or epochs, and only one of them"),
    (GOOD + "accumulate = 9\n", "c.toml:10: [train] cannot accumulate 9 parts of a batch of 8; use at most batch_size"),
    (GOOD + "batch_size = '8'\n", "c.toml:13: train.batch_size wants a whole number, not the text '8'"),
    (GOOD + "batch_size = 1.0\n", "c.toml:13: train.batch_size wants a whole number, not 1.0"),
    (GOOD + "batch_size = true\n", "c.toml:13: train.batch_size wants a whole number, not true"),
    (GOOD + "batch_size = [8]\n", "c.toml:13: train.batch_size wants a whole number, not a list"),
    (GOOD + "batch_size.x = 8\n", "c.toml:13: train.batch_size wants a whole number, not a table"),
    (GOOD + "batch_size = 2024-01-01\n", "c.toml:13: train.batch_size wants a whole number, not a date"),
    (GOOD + "batch_size = 07:30:00\n", "c.toml:13: train.batch_size wants a whole number, not a time"),
    (GOOD + "batch_size = 0\n", "c.toml:13: train.batch_size must be at least 1, and is 0"),
    (GOOD + f"batch_size = {2**63}\n", "c.toml:13: train.batch_size is a number of more than 64 bits"),
    (
        GOOD + "device = 'gpu'\n",
        "c.toml:13: train.device cannot be the text 'gpu'; write it as in 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'",
    ),
    (GOOD + "[data.x]\n", "c.toml:13: data.x is not a setting of [data]\nhint: "),
    (changed("1e-3", "nan"), "c.toml:9: optimizer.lr must be a finite number, and is nan"),
    (changed("1e-3", "-inf"), "c.toml:9: optimizer.lr must be a finite number, and is -inf"),
    (changed("1e-3", "0"), "c.toml:9: optimizer.lr must be greater than 0, and is 0"),
    (changed("1e-3", "1\neps = inf"), "c.toml:10: optimizer.eps must be a finite number, and is inf"),
    (changed("1e-3", "1\nbetas = [0.5]"), "c.toml:10: optimizer.betas has too few values"),
    (changed("1e-3", "1\nbetas = [0.5, 0.5, 1]"), "c.toml:10: optimizer.betas has too many values"),
    (changed("1e-3", "1\nbetas = [0.5, 1]"), "c.toml:10: optimizer.betas[1] must be less than 1, and is 1"),
    (changed("1e-3", "1\nbetas = [0.5,\n 'x']"), "c.toml:10: optimizer.betas[1] wants a number, not the text 'x'"),
    (changed("1e-3", "1\nbetas = 0.5"), "c.toml:10: optimizer.betas wants a list, not 0.5"),
    (changed('"3x64x64"', '"3x0x64"'), "c.toml:7: data.input[1] must be at least 1, and is 0"),
    (changed('"3x64x64"', '"64"'), "c.toml:7: data.input wants channels x size, as in '3x256x256', not the text '64'"),
    (changed('"3x64x64"', "[3, 64]"), "c.toml:7: data.input wants channels x size, as in '3x256x256', not a list"),
    (changed('"3x64x64"', '"3x64x64"\nvalidation = 2'), "c.toml:8: data.validation must be less than 1, and is 2"),
    (
        changed('"3x64x64"', '"3x64x64"\nvalidation = true'),
        "c.toml:8: data.validation wants a number or text, not true",
    ),
    (changed('"3x64x64"', '"3x64x64"\nvalidation = ""'), "c.toml:8: data.validation wants a path, not the text ''"),
    (
        changed('"3x64x64"', '"3x64x64"\ncache = true'),
        "c.toml:8: data.cache wants a size such as '512MiB' or '24GiB', not true",
    ),
    (
        changed('"3x64x64"', '"3x64x64"\nresize = "covr"'),
        "c.toml:8: data.resize wants 'cover' or 'none', not the text 'covr'; did you mean 'cover'?",
    ),
    (changed('"3x64x64"', '"3x64x64"\nresize = 3'), "c.toml:8: data.resize wants 'cover' or 'none', not 3"),
    (changed('"photos"', '""'), "c.toml:6: data.source wants a path, not the text ''"),
    (changed('"runs/a"', '""'), "c.toml:11: train.run_dir wants a path, not the text ''"),
    (changed('"runs/a"', '"a\\u0000"'), "c.toml:11: train.run_dir wants a path, not the text 'a\\x00'"),
    (changed('"runs/a"', "3"), "c.toml:11: train.run_dir wants a path, not 3"),
    ("loss = 3\n" + GOOD, "c.toml:1: loss wants a table, not 3"),
    (GOOD + "[plugins.prefer]\nSnake = 3\n", "c.toml:14: plugins.prefer.Snake wants text, not 3"),
    (GOOD + '["\\u0007 b"]\n', 'c.toml:13: ["\\u0007 b"] is not a table of a config\nhint: the tables are [model], '),
]


@pytest.mark.parametrize(("text", "message"), BAD_KEYS, ids=[m.partition("\n")[0] for _, m in BAD_KEYS])
def test_a_bad_key(tmp_path: Path, text: str, message: str) -> None:
    (found,) = messages(write(tmp_path / "c.toml", text))
    assert found == message or (message.count("hint: ") and found.startswith(message))


BAD_TEXTS = [
    (b"a = 1\n\nb 2\n", "c.toml:3:3: expected '=' after a key in a key/value pair\n  b 2\n    ^"),
    (b"a = 1\r\n\r\nb 2\r\n", "c.toml:3:3: expected '=' after a key in a key/value pair\n  b 2\n    ^"),
    (b"[train\n", "c.toml:1:7: expected ']' at the end of a table declaration"),
    (b"[train]\nseed = 1\nseed = 2\n", "c.toml:3:9: this key is given twice"),
    (b"[train]\n[data]\n[train]\n", "c.toml:3:7: this table is given twice"),
    (b"[train]\nseed = 1\n[train.seed]\n", "c.toml:3:12: this key is given twice"),
    (b"a = 01\n", "c.toml:1:6: expected newline or end of document after a statement"),
    (b"\n\xff", "c.toml:2: is not UTF-8 (byte 0xff); save it as UTF-8"),
    (GOOD.encode("utf-16"), "c.toml: is UTF-16; save it as UTF-8"),
    (GOOD.encode("utf-16-be"), "c.toml: is UTF-16; save it as UTF-8"),
    (b"a = 1\nb\0 = 2", "c.toml:2: has a NUL byte; this is no text file"),
    (b"a = 1\nb = " + b"9" * 5000, "c.toml:2: a number has thousands of digits"),
    (b"a = 1\nb = 0x" + b"f" * 5000, "c.toml:2: b is a number of more than 64 bits"),
    (b"a = " + b"[" * 100_000, "c.toml: tables and lists are nested more than 64 deep"),
    (b"a = " + b"[" * 100 + b"]" * 100, "c.toml:1: a[0] is nested more than 64 deep"),
    (b"\n" + b".".join([b"a"] * 500) + b" = 1", "c.toml:2: a.a is nested more than 64 deep"),
    (b".".join([b"a"] * 50_000) + b" = 1", "c.toml: tables and lists are nested more than 64 deep"),
    (b"#" * 1_000_001, "c.toml: is larger than 1,000,000 bytes; a config is a page of text"),
]


@pytest.mark.parametrize(("data", "message"), BAD_TEXTS, ids=[m.partition("\n")[0] for _, m in BAD_TEXTS])
def test_a_bad_text(tmp_path: Path, data: bytes, message: str) -> None:
    (found,) = messages(write(tmp_path / "c.toml", data))
    assert found.startswith(message)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert messages(tmp_path / "none.toml") == ["none.toml: does not exist"]
    (tmp_path / "folder").mkdir()
    assert messages(tmp_path / "folder") == ["folder: is a directory; give a TOML file"]
    assert messages(tmp_path / "a\0b") == ["a\0b: cannot be read: no file can be called that"]
    write(tmp_path / "file")
    assert messages(tmp_path / "file" / "x")[0].endswith("cannot be read: Not a directory")


def test_all_problems_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = changed("lr = 1e-3", "lrr = 1").replace("max_steps = 10", "max_steps = 0").replace('source = "photos"\n', "")
    found = messages(write(tmp_path / "c.toml", text), "loss.alpha=x", "lost.x=1")
    assert [m.partition(": ")[0] for m in found] == [
        "c.toml:5",
        "c.toml:8",
        "c.toml:11",
        "--set loss.alpha",
        "--set lost.x",
    ]


def test_extends_merges_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "base" / "base.toml", changed("lr = 1e-3", "lr = 1e-3\nbetas = [0.1, 0.2]"))
    text = 'extends = "../base/base.toml"\n[data]\nsource = "mine"\n[optimizer]\nbetas = [0.3, 0.4]\n'
    config = load_config(write(tmp_path / "own" / "c.toml", text))
    assert config.settings.optimizer.lr == 1e-3
    assert config.settings.optimizer.betas == (0.3, 0.4)
    assert config.settings.data.source == str(tmp_path / "own" / "mine")
    assert config.settings.model.encoder == tmp_path / "base" / "structures" / "encoder.json"
    assert "extends" not in config.document


def test_another_optimizer_takes_over_only_what_it_uses(tmp_path: Path) -> None:
    adam = "lr = 1e-3\nbetas = [0.1, 0.2]\neps = 1e-6"
    base = write(
        tmp_path / "base.toml",
        changed("lr = 1e-3", adam) + '[adversarial]\ndiscriminator = "d.json"\noptimizer = {betas = [0.1, 0.2]}\n',
    )
    own = write(tmp_path / "c.toml", 'extends = "base.toml"\n[optimizer]\nname = "sgd"\nmomentum = 0.9\n')
    table = load_config(own).settings.optimizer
    assert (table.name, table.lr, table.betas, table.momentum) == ("sgd", 1e-3, (0.9, 0.999), 0.9)
    assert load_config(own).notes == ()
    assert load_config(base, ["optimizer.name=nadam"]).settings.optimizer.betas == (0.1, 0.2)
    over = ["optimizer.name=rmsprop", "adversarial.optimizer.name=adafactor"]
    found = load_config(base, over)
    assert found.notes == ("adversarial.optimizer.betas of the config is left out: adafactor makes no use of it",)
    assert found.settings.optimizer.eps == 1e-6
    assert "betas" not in found.document["adversarial"]["optimizer"]
    for both in (["optimizer.name=sgd", "optimizer.eps=1"], ["optimizer.eps=1", "optimizer.name=sgd"]):
        (said,) = messages(base, *both)
        assert said.endswith("[optimizer] has eps, of which sgd makes no use; leave it out")


def test_errors_name_the_file_that_the_value_came_from(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", changed("lr = 1e-3", "lr = -1\neps = -1").replace("photos", "x\\u0000"))
    text = 'extends = "base.toml"\n[optimizer]\n\neps = -2\nlrr = 1\n'
    assert messages(write(tmp_path / "c.toml", text)) == [
        "base.toml:6: data.source wants a path, not the text 'x\\x00'",
        "base.toml:9: optimizer.lr must be greater than 0, and is -1",
        "c.toml:4: optimizer.eps must be greater than 0, and is -2",
        "c.toml:5: optimizer.lrr is not a setting of [optimizer]; did you mean optimizer.lr?",
    ]


def test_extends_that_leads_nowhere(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    assert messages(write(config, "\nextends = 'gone.toml'\n")) == ["c.toml:2: extends gone.toml: does not exist"]
    (tmp_path / "dir").mkdir()
    assert messages(write(config, "extends = 'dir'")) == ["c.toml:1: extends dir: is a directory; give a TOML file"]
    for wrong in ("3", "['base.toml']", "''", '"\\u0000"'):
        (found,) = messages(write(config, f"extends = {wrong}"))
        assert found == "c.toml:1: extends wants the path of a config file, as in extends = 'base.toml'"
    write(tmp_path / "broken.toml", "a = 1\nb")
    assert messages(write(config, "extends = 'broken.toml'"))[0].startswith("broken.toml:2:2: ")


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "extends = 'b.toml'")
    write(tmp_path / "b.toml", "\nextends = 'c/../a.toml'")
    (tmp_path / "c").mkdir()
    assert messages(tmp_path / "a.toml") == ["b.toml:2: extends goes in a circle: a.toml -> b.toml -> c/../a.toml"]


def test_extends_through_too_many_files(tmp_path: Path) -> None:
    write(tmp_path / "0.toml")
    for n in range(1, MAX_CHAIN + 1):
        write(tmp_path / f"{n}.toml", f"extends = '{n - 1}.toml'")
    assert load_config(tmp_path / f"{MAX_CHAIN - 1}.toml").settings.train.max_steps == 10
    (found,) = messages(tmp_path / f"{MAX_CHAIN}.toml")
    assert found.startswith("1.toml:1: extends goes through more than 16 files: 16.toml -> 15.toml -> ")


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer", "lr", 1e-4),
        ("optimizer.lr = 1", "optimizer", "lr", 1.0),
        ("optimizer={lr = 2.5}", "optimizer", "lr", 2.5),
        ("optimizer.betas=[0.1, 0.2]", "optimizer", "betas", (0.1, 0.2)),
        ("data.flip=false", "data", "flip", False),
        ("data.input=1x28x28", "data", "input", (1, 28, 28)),
        ('data.input="1x28x28"', "data", "input", (1, 28, 28)),
        ("data.source=builtin:scenery", "data", "source", "builtin:scenery"),
        ("data.validation=0", "data", "validation", 0.0),
        ("model.bottleneck=None", "model", "bottleneck", "None"),
        ("plugins.prefer.Snake=flexvae-audio", "plugins", "prefer", {"Snake": "flexvae-audio"}),
        ('plugins.prefer."a.b"=c', "plugins", "prefer", {"a.b": "c"}),
        ("loss.reconstruction=2024-01-01", "loss", "reconstruction", "2024-01-01"),
    ],
)
def test_an_override(tmp_path: Path, override: str, table: str, key: str, value: object) -> None:
    settings = load_config(write(tmp_path / "c.toml"), [override]).settings
    assert getattr(getattr(settings, table), key) == value


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "c.toml"), ["optimizer.lr=1", "train.seed=3", "optimizer.lr=2"])
    assert (config.settings.optimizer.lr, config.settings.train.seed) == (2.0, 3)
    assert config.document["optimizer"] == {"lr": 2}


BAD_OVERRIDES = [
    (
        "train.batchsize=4",
        "--set train.batchsize: train.batchsize is not a setting of [train]; did you mean train.batch_size?",
    ),
    ("optimiser.lr=1", "--set optimiser.lr: [optimiser] is not a table of a config; did you mean [optimizer]?"),
    ("lr=1", "--set lr: lr stands outside the tables; lr is a setting of [optimizer]"),
    ("data.flip=True", "--set data.flip: data.flip wants true or false, not the text 'True'"),
    ("train.run_dir=", "--set train.run_dir: train.run_dir wants a path, not the text ''"),
    ("train={epochs=2, max_steps=2}", "--set train: [train] wants max_steps or epochs, and only one of them"),
    ("train=3", "--set train: train wants a table, not 3"),
    ("train.seed.x=3", "--set train.seed.x: train.seed wants a whole number, not a table"),
    ("train.seed=99999999999999999999", "--set train.seed: train.seed is a number of more than 64 bits"),
    ("extends=base.toml", "--set extends: extends belongs into a config file"),
    ("train.seed", "--set train.seed: wants KEY=VALUE, as in --set optimizer.lr=1e-3"),
    ("=3", "--set : wants KEY=VALUE, as in --set optimizer.lr=1e-3"),
    ("a b=3", "--set a b: wants KEY=VALUE, as in --set optimizer.lr=1e-3"),
    ("train.seed=\udcff", "--set train.seed: wants KEY=VALUE, as in --set optimizer.lr=1e-3"),
    (".".join(["a"] * 100) + "=1", f"--set {'.'.join(['a'] * 100)}: a.a is nested more than 64 deep"),
]


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES, ids=[m[:60] for _, m in BAD_OVERRIDES])
def test_a_bad_override(tmp_path: Path, override: str, message: str) -> None:
    assert messages(write(tmp_path / "c.toml"), override) == [message]


def test_a_key_that_the_file_lacks_is_missed_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", changed('run_dir = "runs/a"\n', ""))
    (found,) = messages(path, "train.seed=3")
    assert found.startswith("c.toml:10: [train] needs run_dir")


def test_paths_are_relative_to_where_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    text = changed('"photos"', '"~/photos"').replace('"3x64x64"', '"3x64x64"\nvalidation = "../val"')
    write(tmp_path / "configs" / "c.toml", text + '[infer]\ninput = "builtin:scenery/val"\noutput = "/out"\n')
    settings = load_config(Path("../configs/c.toml"), ["encode.output=latents", "model.init=~/m"]).settings
    assert settings.data.source == str(tmp_path / "home/photos")
    assert settings.data.validation == str(tmp_path / "val")
    assert settings.infer.input == "builtin:scenery/val"
    assert settings.infer.output == Path("/out")
    assert settings.encode.output == work / "latents"
    assert settings.model.init == tmp_path / "home/m"
    assert settings.train.run_dir == tmp_path / "configs/runs/a"


def test_find_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("x.toml")) == Path("x.toml")
    with pytest.raises(UsageError, match=re.escape("there is no flexvae.toml here")) as caught:
        find_config(None)
    assert caught.value.problems[0].hint == "give --config FILE, or write one with: flexvae config new quickstart"
    write(tmp_path / "flexvae.toml")
    assert find_config(None) == Path("flexvae.toml")


def test_shipped_configs_are_there() -> None:
    assert (shipped_configs() / "structures").is_dir()


def test_the_schema_knows_every_table_and_extends() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == {*Settings.model_fields, "extends"}
    assert schema["$defs"]["DataTable"]["properties"]["input"]["type"] == "string"


def test_the_reference_on_disk_is_up_to_date() -> None:
    page = Path(__file__).parent.parent / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "run: python -m flexvae_cli.config.reference > docs/config.md"
    )


def test_importing_the_config_is_light() -> None:
    code = (
        "import sys, flexvae_cli.config, flexvae_cli.config.reference, flexvae_cli.config.shipped\n"
        "print([m for m in ('torch', 'numpy', 'rich', 'PIL', 'typer') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


ODD = [
    "\0",
    "\r",
    "\x1b",
    "\x7f",
    "\ufeff",
    "\u0663",
    "\u202e",
    "\ud800",
    "é",
    "🙂",
    '"""',
    "'''",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
]
ODD += [
    "#",
    "\\",
    "\\u",
    "\n",
    "[train]\n",
    "extends = 'c.toml'\n",
    "nan",
    "-inf",
    "1_0",
    "0x" + "f" * 40,
    "9" * 4400,
    "[" * 500,
]
ODD += [
    "a." * 70 + "a = 1\n",
    "a." * 1200 + "a = 1\n",
    "[" * 70 + "]" * 70,
    "2024-01-01",
    "true",
    "''",
    ",",
    "1e999",
    "-",
    "0",
]
LEAKS = re.compile(r"(?i:pydantic|traceback|input should|https?:|validation error)|[a-z]Table\b")


def mutated(text: str, random_: random.Random) -> str:
    """A few deletions, insertions, swaps and changed characters."""
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(text) + 1)
        end = min(len(text), at + int(random_.expovariate(0.2)))
        choice = random_.randrange(6)
        if choice == 0:
            text = text[:at] + text[end:]
        elif choice == 1:
            text = text[:at] + random_.choice(ODD) + text[at:]
        elif choice == 2:
            text = text[:at] + random_.choice(ODD) + text[end:]
        elif choice == 3:
            text = text[:at] + chr(random_.choice([random_.randrange(128), random_.randrange(0x3000)])) + text[at + 1 :]
        elif choice == 4:
            text = text[:at] + text[end:] + text[at:end]
        else:
            lines = text.split("\n")
            lines.insert(random_.randrange(len(lines)), random_.choice(lines))
            text = "\n".join(lines)
    return text


@pytest.mark.timeout(0 if NIGHTLY else 300)
def test_whatever_the_text_only_usage_errors_leave(tmp_path: Path) -> None:
    text = (
        GOOD
        + 'batch_size = 4\n[plugins]\nprefer = { Snake = "a" }\n[schedule]\nname = "step"\n[mem]\nmemory = "1GiB"\n'
    )
    load_config(write(tmp_path / "c.toml", text))
    random_, loaded = random.Random(0), 0
    for _ in range(MUTATIONS):
        data = mutated(text, random_).encode(errors="surrogatepass")
        write(tmp_path / "c.toml", data)
        try:
            config = load_config(tmp_path / "c.toml")
        except UsageError as error:
            for problem in error.problems:
                assert problem.where
                assert not LEAKS.search(problem.what), (problem, data)
        else:
            loaded += 1
            assert tomli.loads(to_toml(config.document)) == config.document
    assert MUTATIONS // 50 < loaded < MUTATIONS // 2


def test_epochs_on_the_command_line_are_in_the_place_of_steps_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", GOOD)
    train = load_config(path, ["train.epochs=3"]).settings.train
    assert (train.max_steps, train.epochs) == (None, 3)
    train = load_config(path, ["train.epochs=3", "train.max_steps=7"]).settings.train
    assert (train.max_steps, train.epochs) == (7, None)


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('name = "sgd"\neps = 1e-3', "eps"),
        ('name = "adafactor"\nbetas = [0.1, 0.2]', "betas"),
        ("momentum = 0.9", "momentum"),
    ],
)
def test_optimizer_keys_without_effect_are_refused(tmp_path: Path, lines: str, key: str) -> None:
    (found,) = messages(write(tmp_path / "c.toml", GOOD.replace("lr = 1e-3", lines)))
    assert f"[optimizer] has {key}, of which" in found
