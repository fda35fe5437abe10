"""What all tests share: no network, and a tiny model as training would have left it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from distributions import Folder

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it; tables are then cut to its width

hypothesis.settings.register_profile("ordinary", derandomize=True, deadline=None)  # once passed, passes again
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("nightly" if os.environ.get("FLEXVAE_NIGHTLY") == "1" else "ordinary")

LOOPBACK = {"localhost", "127.0.0.1", "::1", "", None}
ENCODER = ["C2d_3_8_3_2_1", "SiLU", "C2d_8_4_3_2_1"]  # 3xHxW -> 4 x H/4 x W/4, rounded up
DECODER = ["C2d_2_8_3_1_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """No test, and nothing that a test runs in this process, reaches beyond this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
        resolve = socket.getaddrinfo
        patch.setattr(socket, "getaddrinfo", lambda host, *a, **k: resolve(_local(host), *a, **k))
        yield


def _local_only(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX:
            _local(address[0])
        return connect(self, address)

    return guarded


def _local(host: Any) -> Any:
    if host not in LOOPBACK:
        raise RuntimeError(f"a test tried to reach {host!r} over the network")
    return host


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """Write a run directory that holds one checkpoint of an untrained net; equal arguments make equal weights."""

    def make(
        run: Path,
        *,
        encoder: list[str] = ENCODER,
        bottleneck: str = "KL",
        decoder: list[str] = DECODER,
        shape: tuple[int, ...] = (3, 16, 16),
        seed: int = 0,
        change: Callable[[dict[str, Any]], object] | None = None,
        **description: Any,
    ) -> Path:
        import torch

        from flexvae_cli.engine.build import build_vae
        from flexvae_cli.engine.checkpoint import save_checkpoint
        from flexvae_cli.net import make_net
        from flexvae_cli.plugins import installed
        from flexvae_cli.structure import parse_structure

        registry = installed().registry
        parts = [parse_structure(part, registry, name) for part, name in ((encoder, "encoder"), (decoder, "decoder"))]
        net = make_net(parts[0], bottleneck, parts[1], shape, registry, None)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = {name: 2 * tensor for name, tensor in build_vae(net).state_dict().items()}
        if change is not None:
            change(weights)
        model = {
            **net.describe(),
            "output": "samples",
            "preprocessing": {"background": "#ffffff", "exif": True},
            "latents": {"mean": [0.5, -0.5], "std": [2.0, 0.5]},
            **description,
        }
        save_checkpoint(run, 0, weights=weights, model=model, training={}, state={})
        return run

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """A run directory whose model takes RGB images, with sides that are multiples of 4; others are padded."""
    return make_model(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of images of odd sizes, in folders, two of which share a stem."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "photos"
    for index, (name, height, width) in enumerate(
        [("a.jpg", 16, 16), ("a.png", 16, 16), ("b/c.png", 37, 50), ("b/d.png", 40, 52), ("e/f.bmp", 20, 12)]
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(path)
    return folder


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it said."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def flexvae() -> Callable[..., Ended]:
    """Run a command in this process, from its arguments to its exit code: `flexvae("infer", model, photos, out)`."""
    from flexvae_cli import main

    def run(*arguments: object) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["flexvae", *map(str, arguments)])
            with pytest.raises(SystemExit) as ended:
                main.run()
        return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def fuzz_factor() -> int:
    """How many times the ordinary counts of the fuzz tests run: once, or 100 times under `make nightly`."""
    return 100 if os.environ.get("FLEXVAE_NIGHTLY") == "1" else 1


@pytest.fixture
def harness(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run `harness.py` in a process of its own; returns what it found."""

    script = Path(__file__).with_name("harness.py")

    def run(mode: str, count: int, seed: int = 0) -> dict[str, Any]:
        command = [sys.executable, str(script), str(tmp_path / "project"), mode, str(count), str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A folder on `sys.path` for fake distributions, whose modules are forgotten in the end."""
    monkeypatch.syspath_prepend(tmp_path)
    yield Folder(tmp_path)
    for name in [name for name in sys.modules if name.startswith("plugin_of_")]:
        del sys.modules[name]
