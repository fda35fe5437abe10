"""The report as a browser sees it: no request, no error, and everything that moves moves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import STEPS, hostile, make_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium on this machine")


class Browser:
    """Chromium without a window, spoken to in its DevTools protocol through two pipes.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        asks, self.asks = os.pipe()
        self.answers, answers = os.pipe()
        flags = "--headless=new --disable-gpu --disable-background-networking --disable-component-update --no-first-run"
        flags += " --no-sandbox" * (os.geteuid() == 0)
        command = f'exec "$0" {flags} --user-data-dir="$1" --remote-debugging-pipe 3<&{asks} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, str(FOUND), str(profile)],
            pass_fds=(asks, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        os.close(asks)
        os.close(answers)
        self.reader = os.fdopen(self.answers, "rb")
        self.events: list[dict[str, Any]] = []
        self.number = 0
        self.session: str | None = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command; events that come before its answer are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.asks, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return dict(found["result"])

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        found: dict[str, Any] = json.loads(data)
        if "method" in found:
            self.events.append(found)
        return found

    def open(self, path: Path) -> None:
        """Load a file to its end."""
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not self.said("Page.loadEventFired"):
            self._next()

    def said(self, *methods: str) -> list[dict[str, Any]]:
        """What it told of by itself since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window a size."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def close(self) -> None:
        """End it."""
        os.close(self.asks)
        self.reader.close()
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory, make_model) -> Path:
    """The report of a run whose every text is hostile."""
    from importlib.resources import files

    folder = tmp_path_factory.mktemp("browser")
    photos = Path(str(files("flexvae_cli"))) / "assets/scenery/val"
    run = hostile(make_run(folder / "run", make_model, photos))
    return report_of(run, folder / "report.html")


def report_of(run: Path, target: Path) -> Path:
    from flexvae_cli.commands.report import report

    report(run, target)
    return target


def test_it_opens_without_a_request_or_an_error(browser, report):
    browser.open(report)
    asked = [event["request"]["url"] for event in browser.said("Network.requestWillBeSent")]
    assert asked[0] == report.as_uri()
    assert all(url.startswith("data:image/") for url in asked[1:])
    wrong = browser.said("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert wrong == []
    assert browser.evaluate("document.title") == "<b>run & 'co' \"x\""


def test_its_charts_have_points_and_say_what_is_pointed_at(browser, report):
    browser.open(report)
    browser.resize(1240)
    counts = browser.evaluate(
        "[...document.querySelectorAll('path.line')].map(p => p.getAttribute('d').split('L').length)"
    )
    assert len(counts) >= 10
    assert max(counts) == STEPS // 2
    assert browser.evaluate("[...document.querySelectorAll('path.line')].every(p => p.getTotalLength() >= 0)")
    box = browser.evaluate("document.querySelector('svg[data-lines]').getBoundingClientRect().toJSON()")
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + box["width"] / 2, y=box["y"] + 50)
    tip = browser.evaluate("document.querySelector('.tip').textContent").split("\n")
    assert tip[0].startswith("step ")
    assert [line.split()[0] for line in tip[1:]] == ["train", "validation"]
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    assert browser.evaluate("document.querySelector('.tip').hidden")


def test_its_slider_goes_through_the_previews(browser, report):
    browser.open(report)
    shown = "[...document.querySelectorAll('.previews img')].map(i => i.checkVisibility() && i.naturalWidth > 0)"
    assert browser.evaluate(shown) == [False, True]
    move = "const s = document.querySelector('.slider input'); s.value = 0; s.dispatchEvent(new Event('input'))"
    browser.evaluate(f"{{ {move} }}")
    assert browser.evaluate(shown) == [True, False]
    assert browser.evaluate("document.querySelector('.slider output').textContent") == "10"


@pytest.mark.parametrize("width", [360, 1240])
def test_it_is_as_wide_as_the_window(browser, report, width):
    browser.open(report)
    browser.resize(width)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
