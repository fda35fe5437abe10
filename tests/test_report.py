"""`flexvae report`: a run, whatever became of it, as one page."""

from __future__ import annotations

import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import STEPS, hostile, make_run

from flexvae_cli.engine.report.facts import read_run
from flexvae_cli.engine.report.page import Extras, page
from flexvae_cli.engine.report.summary import duration, summary
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.errors import Exit

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(html.parser.HTMLParser):
    """The elements of a page, and whether each that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str, css: str = "") -> int:
        classes = [(attrs.get("class") or "").split(" ") for name, attrs in self.elements if name == tag]
        return sum(not css or css in each for each in classes)


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory) -> Path:
    """Six photographs."""
    from importlib.resources import files

    folder = tmp_path_factory.mktemp("photos")
    scenes = sorted((files("flexvae_cli") / "assets/scenery/val").iterdir(), key=lambda p: p.name)
    for scene in scenes[:6]:
        shutil.copy(str(scene), folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_model, photos_folder) -> Path:
    return make_run(tmp_path_factory.mktemp("finished") / "run", make_model, photos_folder)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def requests(found: Page) -> list[str]:
    """Every place that a browser would fetch something from."""
    places = []
    for _, attrs in found.elements:
        places += [attrs[key] or "" for key in ("src", "href", "srcset", "action", "data", "poster") if key in attrs]
    return [place for place in places if not place.startswith(("data:", "#"))]


def test_a_finished_run_is_told_whole(flexvae, finished):
    before = sorted(finished.rglob("*"))
    ended = flexvae("report", finished, "--json")
    assert ended.exit_code == 0, ended.stderr
    said = json.loads(ended.stdout)
    target = finished / "report.html"
    assert said["report"] == str(target)
    assert (said["status"], said["step"], said["psnr"]) == ("finished", STEPS, 30.0)
    assert said["best_psnr"] == {"step": STEPS, "psnr": 30.0}
    assert said["memory_bytes"] == 8.1e8
    assert sorted(finished.rglob("*")) == sorted([*before, target])
    text = target.read_text()
    assert said["bytes"] == len(text.encode())
    found = Page(text)
    assert requests(found) == []
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", text.replace('http-equiv="', ""))
    # loss, reconstruction, kld; PSNR, SSIM; gradient, lr; speed, wait, memory
    assert found.count("figure", "chart") == 10
    assert found.count("figure", "histogram") == 2
    assert found.count("img") == 3  # two previews, the net
    for words in ("finished", "step 100 of 100", "44 images (16 held out)", "C2d_3_8_3_2_1", "lr = 0.001", "30.00"):
        assert words in found.text, words
    # all over again: an earlier report is replaced, and a run with one is continued like any other
    assert flexvae("report", finished).exit_code == 0
    with RunDirectory(finished, resume=True):
        pass
    target.unlink()


def test_only_the_page_s_own_script_and_style_may_run(finished):
    text = page(read_run(finished), Extras())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert Page(text).count("script") == Page(text).count("style") == 1


def test_nothing_that_a_run_holds_becomes_a_part_of_the_page(flexvae, run):
    spoilt = hostile(run)
    ended = flexvae("report", spoilt, run.with_name("out.html"), "--json")
    assert ended.exit_code == 0, ended.stderr
    assert json.loads(ended.stdout)["bad_files"] == 1
    found = Page(run.with_name("out.html").read_text())
    assert requests(found) == []
    assert found.count("script") == 1
    assert found.count("b") == found.count("figure", "chart") + found.count("figure", "histogram")
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    assert found.text.count("<script>alert(1)</script>") >= 5  # told as text: title, log, files, settings, a term
    assert "3 lines could not be read" in found.text
    assert found.count("img") == 3  # what is no PNG is left out


def test_every_state_of_a_run(finished, run, make_model, tmp_path, photos_folder):
    assert read_run(finished).status == "finished"
    (run / "log.txt").write_text("stopped at step 60, saved; continue with: flexvae train --resume\n")
    cut = (run / "metrics.jsonl").read_text().splitlines()[:30]
    (run / "metrics.jsonl").write_text("\n".join(cut))
    facts = read_run(run)
    assert facts.status == "stopped"
    assert facts.step < STEPS == facts.max_steps
    assert facts.problems == ()
    (run / "log.txt").write_text("stopped at step 60, saved\ncontinuing at step 60: run\n")
    assert read_run(run).status == "interrupted"
    (run / "log.txt").write_text("step 60\nended by an error: training diverged: at step 60 not finite\n")
    assert read_run(run).status == "diverged"
    (run / "log.txt").write_text("step 60\n")
    with RunDirectory(run, resume=True):
        assert read_run(run).status == "training"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    note = json.loads("{}") | {"pid": gone.pid, "host": os.uname().nodename, "started": "now"}
    (run / ".lock").write_text('{"flexvae": "0"}\n' + json.dumps(note))
    assert read_run(run).status == "interrupted"


def test_a_run_that_has_just_begun(flexvae, tmp_path):
    run = tmp_path / "run"
    with RunDirectory(run) as held:
        held.write_config({"train": {"max_steps": 10}})
        ended = flexvae("report", run)
        assert ended.exit_code == 0, ended.stderr
    found = Page((run / "report.html").read_text())
    assert "training now" in found.text
    assert "Nothing was logged yet." in found.text
    assert "there is no checkpoint yet" in found.text
    assert found.count("figure") == 0


def test_a_run_whose_files_are_damaged_tells_the_rest(flexvae, run):
    (run / "config.json").write_text("{")
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00" * 50)
    next(run.glob("ckpt/*/model.json")).write_text("{}")
    (run / "previews/step-00000010.png").unlink()
    ended = flexvae("report", run)
    assert ended.exit_code == 0, ended.stderr
    found = Page((run / "report.html").read_text())
    assert "config.json: is not JSON" in found.text
    assert "Not measured: " in found.text
    assert found.count("img") == 1


def test_images_that_are_gone_cost_the_latents_alone(flexvae, run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["settings"]["data"]["source"] = str(tmp_path / "nowhere")
    (run / "config.json").write_text(json.dumps(config))
    assert flexvae("report", run).exit_code == 0
    text = (run / "report.html").read_text()
    assert "Not measured: data.source: no such folder" in text
    assert Page(text).count("figure", "chart") == 10


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("nowhere", Exit.MODEL, "nowhere: no such run directory"),
        ("file", Exit.MODEL, "file: is a file, not a run directory"),
        ("empty", Exit.MODEL, "empty: holds no run"),
        ("foreign", Exit.MODEL, "foreign: holds no run: its config.json is not FlexVAE's"),
        ("run/ckpt/step-00000000", Exit.MODEL, "is a checkpoint or a bundle, not a run"),
    ],
)
def test_what_is_no_run_is_refused(flexvae, run, target, code, said):
    folder = run.parent
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign/config.json").write_text('{"model_type": "bert"}')
    ended = flexvae("report", folder / target)
    assert ended.exit_code == code
    assert said in ended.stderr
    assert "hint: " in ended.stderr
    assert not list(folder.rglob("report.html"))


@pytest.mark.parametrize("name", ["notes.html", "report.txt", "folder.html"])
def test_what_is_no_report_is_not_replaced(flexvae, run, name):
    target = run.parent / name
    (run.parent / "notes.html").write_text("<p>mine</p>")
    (run.parent / "folder.html").mkdir()
    ended = flexvae("report", run, target)
    assert ended.exit_code == Exit.USAGE
    assert name in ended.stderr
    assert (run.parent / "notes.html").read_text() == "<p>mine</p>"


def test_reading_a_run_takes_no_torch(finished):
    code = """
import sys
from pathlib import Path
from flexvae_cli.engine.report.facts import read_run
from flexvae_cli.engine.report.page import Extras, page
page(read_run(Path(sys.argv[1])), Extras())
assert not {"torch", "numpy", "matplotlib", "rich"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(finished)], check=True)


def test_numbers_that_are_missing_are_none(run):
    (run / "metrics.jsonl").write_text('{"step": 4, "kind": "train", "loss": null}\n')
    found = summary(read_run(run))
    assert found["loss"] is found["psnr"] is found["best_psnr"] is found["images_per_second"] is None
    assert math.isnan(read_run(run).column("train", "loss")[0][1])


def test_durations_are_said_in_two_units():
    assert [duration(s) for s in (3.4, 119, 150, 7200, 100_000, 400_000)] == [
        "3 s", "119 s", "2 min", "2 h 0 min", "27 h 47 min", "4 d 15 h"
    ]  # fmt: skip
