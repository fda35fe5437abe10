"""Callbacks: switched on by name, shown every event, never the end of a run; and the one that comes with the tool."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexvae_cli import builtin, hookspecs, plugins
from flexvae_cli.api import CallbackSpec, Observer, WeightFile, callback
from flexvae_cli.api.events import Advanced, Event, Finished, Logged, Noticed, Started, Validated
from flexvae_cli.api.testing import check_callback
from flexvae_cli.codes import Bound
from flexvae_cli.config import load_config
from flexvae_cli.config.toml_writer import to_toml
from flexvae_cli.engine.callbacks.table import MetricsTable
from flexvae_cli.engine.modelfiles import find_model
from flexvae_cli.engine.observers import make_observers, observed
from flexvae_cli.errors import DivergedError, UsageError
from flexvae_cli.plan import make_plan
from flexvae_cli.plugins import Plugins
from flexvae_cli.registry import Registered, Registry

CONFIG = """
model = { encoder = "e.json", decoder = "d.json" }
data = { source = "photos", input = "3x8x8", validation = 0, workers = 0, resize = "none" }
[callbacks.csv]
[train]
run_dir = "run"
max_steps = 4
batch_size = 2
log_every = 1
checkpoint_every = 2
preview_every = 0
device = "cpu"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4"]))
    (tmp_path / "d.json").write_text(json.dumps(["UpS_4", "C2d_4_3_3_1_1"]))
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.effect_noise((10, 9), 20 * index + 1).convert("RGB").save(tmp_path / f"photos/{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def declared(make: Callable[[], Any], name: str = "probe") -> CallbackSpec:
    @callback(name)
    def probe(every: int = 1) -> Observer:
        """Probe.

        Args:
            every: which events.
        """
        return make()

    return probe


def brought(monkeypatch: pytest.MonkeyPatch, *specs: CallbackSpec) -> None:
    """Callbacks as an installed plugin brings them."""
    mine = plugins.Plugin("zoo", "flexvae-zoo", "1.2", "zoo", ("flexvae_callbacks",), specs)
    entries = [Registered(spec, "flexvae-zoo", "1.2") for spec in specs]
    for kind in hookspecs.KINDS.values():
        entries += plugins.installed().registry.all(kind)
    loaded = Plugins((*plugins.installed().found, mine), Registry(entries))
    monkeypatch.setattr(plugins, "installed", lambda: loaded)


def rows(run: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_the_one_that_comes_with_the_tool_is_sound():
    check_callback(builtin.csv)
    check_callback(builtin.csv, separator="tab")


def test_a_run_and_its_continuation_are_one_table(project, flexvae):
    assert flexvae("train").exit_code == 0
    assert [row["step"] for row in rows(project / "run")] == ["1", "2", "3", "4"]
    with (project / "run/metrics.csv").open("a") as file:
        file.write("5,train,of a past that did not happen\n")
    done = flexvae("train", "--resume", "--set", "train.max_steps=6", "--set", "train.log_every=2")
    assert done.exit_code == 0, done.stderr
    table = rows(project / "run")
    lines = [json.loads(line) for line in (project / "run/metrics.jsonl").read_text().splitlines()]
    assert [int(row["step"]) for row in table] == [line["step"] for line in lines] == [1, 2, 3, 4, 6]
    for row, line in zip(table, lines, strict=True):
        assert row["kind"] == "train"
        assert {name: float(row[name]) for name in ("loss", "lr", "kld")} == {n: line[n] for n in ("loss", "lr", "kld")}


def test_callbacks_may_change_where_a_run_goes_on(project, flexvae, monkeypatch):
    """They do not decide what the weights become."""

    def train(to: int, *settings: str) -> None:
        given = (f"train.max_steps={to}", "schedule.name='constant'", *settings)
        told = flexvae("train", "--resume", *(part for each in given for part in ("--set", each)))
        assert told.exit_code == 0, told.stderr

    watch = Watch()
    brought(monkeypatch, declared(lambda: watch))
    train(4)
    shutil.copytree(project / "run", project / "other")
    train(8, "train.run_dir='other'")
    train(6, "callbacks.csv.separator='semicolon'", "callbacks.probe.every=2")  # one is added, one has other values
    assert [row["step"] for row in rows(project / "run", ";")] == ["1", "2", "3", "4", "5", "6"]
    assert [event.step for event in watch.seen if isinstance(event, Started | Logged)] == [4, 5, 6]
    (project / "flexvae.toml").write_text(CONFIG.replace("[callbacks.csv]\n", ""))
    train(7)  # both are removed
    assert (len(rows(project / "run", ";")), watch.closed) == (6, 1)
    train(8, "callbacks.csv={}")  # and one is there again, for the whole run
    assert [row["step"] for row in rows(project / "run")] == [str(step) for step in range(1, 9)]
    straight, changed = (find_model(project / name) for name in ("other", "run"))
    assert straight.path.name == changed.path.name == "step-00000008"
    assert straight.weights_hash == changed.weights_hash


def test_observers_are_closed_where_a_run_ends_before_it_begins(project, flexvae, monkeypatch):
    watch = Watch()
    brought(monkeypatch, declared(lambda: watch), declared(lambda: 3, "number"))
    assert flexvae("train", "--set", "callbacks.probe={}", "--set", "callbacks.number={}").exit_code == 2
    assert watch.closed == 1
    for image in (project / "photos").iterdir():
        image.write_bytes(b"none")
    assert flexvae("train", "--set", "callbacks.probe={}").exit_code == 3
    assert (watch.closed, watch.seen) == (2, [])


def test_an_observer_that_fails_is_told_and_does_not_end_the_run(project, flexvae, monkeypatch):
    seen = list[Event]()

    class Fails:
        def __call__(self, event: Event) -> None:
            seen.append(event)
            print("noise")
            if isinstance(event, Logged):
                raise RuntimeError("the server\nis gone")

        def close(self) -> None:
            raise AssertionError("it was shut out")

    brought(monkeypatch, declared(Fails))
    done = flexvae("train", "--set", "callbacks.probe.every=2", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4
    told = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(told) == 1
    assert told[0].startswith("note: the callback probe fails and is switched off: RuntimeError: the server (")
    assert f"{Path(__file__).name}:" in told[0]
    assert told[0] in (project / "run/log.txt").read_text()
    assert isinstance(seen[0], Started)
    assert seen[0].run == project / "run"
    assert isinstance(seen[-1], Logged)
    assert (seen[-1].step, len(rows(project / "run"))) == (1, 4)


def test_what_is_wrong_with_a_table_is_said_before_anything_is_written(project, flexvae, monkeypatch):
    def refuses() -> Observer:
        raise ValueError("no such server")

    brought(monkeypatch, declared(refuses), declared(lambda: 3, "number"))
    for setting, words in {
        "callbacks.cvs.x=1": "callbacks.cvs: unknown callback 'cvs'; did you mean 'csv'?",
        "callbacks.csv.separater='tab'": "callbacks.csv.separater: csv has no parameter of that name; did you mean sep",
        "callbacks.csv.separator='dot'": "callbacks.csv.separator: csv wants comma or semicolon or tab, not 'dot'",
        "callbacks.csv=3": "callbacks.csv wants a table, not 3",
        "callbacks=3": "callbacks wants a table, not 3",
    }.items():
        with pytest.raises(UsageError) as refused:
            make_plan(load_config(project / "flexvae.toml", [setting]))
        assert words in str(refused.value)
    before = set(project.rglob("*"))
    done = flexvae("train", "--set", "callbacks.probe={}", "--set", "callbacks.number={}")
    assert done.exit_code == 2
    assert "callbacks.probe: probe (flexvae-zoo 1.2) cannot be made: ValueError: no such server (" in done.stderr
    assert "callbacks.number: number (flexvae-zoo 1.2) makes a int, which cannot be called with an event" in done.stderr
    assert set(project.rglob("*")) == before


def test_an_empty_table_of_a_config_stays_in_it(project):
    config = load_config(project / "flexvae.toml")
    assert "[callbacks.csv]" in to_toml(config.document)
    assert [bound.values for bound in make_plan(config).callbacks] == [{"separator": "comma"}]


def test_text_in_a_table_may_hold_what_no_code_could(project, monkeypatch):
    @callback("named")
    def named(title: str = "") -> Observer: ...

    brought(monkeypatch, named)
    (*_, bound) = make_plan(load_config(project / "flexvae.toml", ["callbacks.named.title='my_run / 2 * x'"])).callbacks
    assert bound.values == {"title": "my_run / 2 * x"}


def events() -> Iterator[Event]:
    yield Started(0, 2, 1, "cpu", 1, 1, 1, resumed=False)
    yield Advanced(1)
    yield Finished(1, 0.1)


def diverging() -> Iterator[Event]:
    yield Advanced(1)
    raise DivergedError("not finite")


class Watch:
    def __init__(self, refusing: bool = False) -> None:
        self.seen, self.closed, self.refusing = list[Event](), 0, refusing

    def __call__(self, event: Event) -> None:
        self.seen.append(event)

    def close(self) -> None:
        self.closed += 1
        if self.refusing:
            raise SystemExit(3)


def test_observers_see_all_in_order_and_are_closed_once_however_it_ends():
    one, two = Watch(), Watch()
    assert list(observed(events(), {"one": one, "two": two})) == one.seen == two.seen == list(events())
    assert (one.closed, two.closed) == (1, 1)
    with pytest.raises(DivergedError):
        list(observed(diverging(), {"one": one}))
    assert one.closed == 2
    early = observed(events(), {"one": one})
    next(early)
    early.close()
    assert one.closed == 3


def test_an_observer_that_exits_when_it_is_closed_is_told_behind_the_end():
    *shown, last = observed(events(), {"rude": Watch(refusing=True)})
    assert shown == list(events())
    assert isinstance(last, Noticed)
    assert last.text.startswith("the callback rude fails and is switched off: SystemExit: 3 (")


def test_the_table_gets_a_column_for_what_turns_up_late(tmp_path):
    table = MetricsTable(";")
    for event in (
        Started(0, 9, 1, "cpu", 1, 1, 1, resumed=False, run=tmp_path),
        Logged(1, {"loss": 0.1}),
        Logged(2, {"loss": 0.2, "adversarial": float("nan")}),
        Validated(2, {"psnr": 20.0}),
        Logged(3, {"loss": 0.3}),
    ):
        table(event)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step;kind;loss;adversarial;psnr\n1;train;0.1;;\n2;train;0.2;nan;\n2;validation;;;20.0\n3;train;0.3;;\n"
    )


def test_a_table_goes_on_behind_what_the_run_has_kept(tmp_path):
    """Whatever stands in it: of two runs that were killed behind their validation at a step, one counts."""
    began = Started(2, 9, 1, "cpu", 1, 1, 1, resumed=True, run=tmp_path)
    kept = [
        {"step": 1, "kind": "train", "time": 1.0, "loss": 0.1},
        {"step": 2, "kind": "train", "time": 2.0, "loss": 0.2, "adversarial": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (tmp_path / "metrics.csv").write_text("step,kind,loss\n1,train,0.1\n2,validation,0.2\n2,validation,0.2\n3,tr")
    table = MetricsTable(";")
    for event in (began, Validated(2, {"psnr": 20.0}), Logged(3, {"loss": 0.3, "adversarial": 1.0})):
        table(event)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step;kind;loss;adversarial;psnr\n1;train;0.1;;\n2;train;0.2;nan;\n2;validation;;;20.0\n3;train;0.3;1.0;\n"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "the factory makes a int, which cannot be called with an event"),
        (lambda: lambda event: print(event), "it prints on stdout"),
        (lambda: lambda event: event.values.clear() if isinstance(event, Logged) else None, "it changes the events"),
        (lambda: lambda event: event.step, "does not run: AttributeError"),
    ],
)
def test_a_defect_of_a_callback_is_named(make, message):
    with pytest.raises(AssertionError) as error:
        check_callback(declared(make))
    assert message in str(error.value)


def test_a_callback_takes_no_file():
    with pytest.raises(ValueError, match="a file of weights is for losses alone"):

        @callback("reads")
        def reads(weights: WeightFile) -> Observer: ...


def test_several_factories_are_refused_at_once():
    specs = [declared(lambda: None, name) for name in ("one", "two")]
    with pytest.raises(UsageError) as refused, make_observers(Bound(spec, {"every": 1}) for spec in specs):
        pass
    assert [problem.where for problem in refused.value.problems] == ["callbacks.one", "callbacks.two"]
