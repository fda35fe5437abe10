"""Those that `speed.py` and `on_cuda.py` compare: each makes a function of no arguments that does the work once.

As a program, `python benchmarks/contenders.py`, it is one of them in a process of its own, since the C library's memory
settings hold for a whole process: a line of JSON on stdin says which, then every line asks for one more time, in
seconds, or with `count` for the operations of one time.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import baseline
import torch
from baseline import Autoencoder, Training, codes_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What is to be done, by whom.

    Attributes:
        who: `baseline`, `original`, `flexvae`, `diffusers`, or `convolutions` alone.
        mode: `step`, `forward`, `encode` or `decode`.
        net: `seed`, or `sd`, Stable Diffusion's autoencoder.
        divisor: of the seed's channels.
        size, batch: of the images.
        precision: `fp32` or `bf16`.
        fuse: as `train.fuse`; with `off` layout and memory are left as they are, too.
        device: where.
        compile: as `train.compile`.
        original: a checkout of the original project.
    """

    who: str
    mode: str = "step"
    net: str = "seed"
    divisor: int = 1
    size: int = 256
    batch: int = 1
    precision: str = "fp32"
    fuse: Literal["auto", "on", "off"] = "auto"
    device: str = "cpu"
    compile: bool | str = False
    original: str = ""

    def images(self) -> torch.Tensor:
        shape = (self.batch, 3, self.size, self.size)
        return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(self.device)

    def latents(self) -> torch.Tensor:
        side = self.size // (8 if self.net == "sd" else 16)
        return torch.randn(self.batch, 4, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)


def work(case: Case) -> Work:
    """The function that does a case's work once."""
    torch.manual_seed(0)
    makers = {
        "baseline": _baseline,
        "original": _original,
        "flexvae": _flexvae,
        "diffusers": _diffusers,
        "convolutions": _convolutions,
    }
    return makers[case.who](case)


def _convolutions(case: Case) -> Work:
    """What the machine reaches where nothing else is done: three sizes of such nets, 58 GFLOP."""
    from flexvae_cli.engine.device import settle

    settle()
    pairs = []
    for channels, side in ((128, 256), (256, 128), (512, 64)):
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(case.device)
        x = torch.randn(1, channels, side, side, device=case.device)
        pairs.append([each.to(memory_format=torch.channels_last) for each in (layer, x)])
    return _without_gradients(case, lambda: [layer(x) for layer, x in pairs])


def _autocast(case: Case) -> Any:
    return torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16")


def _baseline(case: Case) -> Work:
    model, x = Autoencoder(case.divisor).to(case.device), case.images()
    if case.mode == "step":
        training = Training(model)
        return lambda: training.step(x)
    model.eval()
    return _without_gradients(case, lambda: model(x))


def _original(case: Case) -> Work:
    """The baseline with the original's own blocks."""
    sys.path.insert(0, case.original)
    blocks = importlib.import_module("src.modules")
    baseline.LAYERS |= {"VAERB": blocks.VAE_ResidualBlock, "VAEA": blocks.VAE_AttentionBlock}
    return _baseline(case)


def _without_gradients(case: Case, act: Work) -> Work:
    @torch.inference_mode()
    def run() -> object:
        with _autocast(case):
            return act()

    return run


def plan_of(case: Case, folder: Path) -> Any:
    """The plan of a config for a case."""
    from flexvae_cli.config import Config
    from flexvae_cli.config.settings import Settings
    from flexvae_cli.plan import make_plan

    files = {}
    for part in ("encoder", "decoder"):
        files[part] = folder / f"{part}.json"
        if case.net == "seed":
            files[part].write_text(json.dumps(codes_of(part, case.divisor)))
        else:
            files[part] = Path(__file__).parents[1] / f"configs/structures/sd-kl-f8-{part}.json"
    document: dict[str, Any] = {
        "model": {part: str(path) for part, path in files.items()},
        "data": {"source": "builtin:scenery", "input": f"3x{case.size}x{case.size}"},
        "loss": {"reconstruction": "mse", "kld_weight": 1e-6, "ssim_metrics": case.net == "seed", "beta": 0.5},
        "optimizer": {"name": "adamw", "lr": 4e-4},
        "schedule": {"name": "constant"},
        "train": {
            "run_dir": str(folder / "run"),
            "max_steps": 1000,
            "device": case.device,
            "precision": case.precision,
            "norm_dtype": "input" if case.net == "sd" else "fp32",  # as autocast leaves norms on a CPU
            "fuse": case.fuse,
            "compile": case.compile,
            "layout": "contiguous" if case.fuse == "off" else "auto",
        },
    }
    return make_plan(Config(Settings.model_validate(document), folder / "c.toml", document))


def _flexvae(case: Case) -> Work:
    from flexvae_cli.engine.build import build_vae
    from flexvae_cli.engine.device import settle
    from flexvae_cli.engine.learner import Learner
    from flexvae_cli.engine.model import in_use

    settle("system" if case.fuse == "off" else "keep")
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(case, Path(folder))
    vae = build_vae(plan.net).to(case.device)
    if case.net == "sd" and case.device == "cpu":
        _take_weights(vae)
    if case.mode == "step":
        learner = Learner(plan, vae, 1000)
        x, steps = learner.prepare(case.images()), iter(range(10**9))
        return lambda: learner.step(next(steps), [x])["loss"].item()
    if case.fuse != "off":
        vae = in_use(vae, case.fuse, torch.bfloat16 if case.precision == "bf16" else None)
    vae.eval()
    x, z = case.images(), case.latents()
    acts: dict[str, Work] = {
        "forward": lambda: vae(x).reconstruction,
        "encode": lambda: vae.encoder(x),
        "decode": lambda: vae.decoder(z),
    }
    return _without_gradients(case, acts[case.mode])


def _their_model() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )


def _take_weights(vae: nn.Module) -> None:
    """The weights of the other library's model, where it is installed: module by module, in the order of their use.

    Blocks are alike, but a shortcut is computed earlier here than there: a module takes the first that has its sizes
    and is left. That it is the same function in the end is checked.
    """
    from importlib.util import find_spec

    if find_spec("diffusers") is None:
        return
    theirs = _their_model()
    x, z = torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 4, 4)

    def used(model: nn.Module, acts: list[Work]) -> list[nn.Module]:
        found: list[nn.Module] = []
        weighted = [module for module in model.modules() if list(module.parameters(recurse=False))]
        hooks = [m.register_forward_pre_hook(lambda module, _: found.append(module)) for m in weighted]
        with torch.no_grad():
            for act in acts:
                act()
        for hook in hooks:
            hook.remove()
        return found

    ours = used(vae, [lambda: vae.encoder(x), lambda: vae.decoder(z)])
    sources = used(
        theirs, [lambda: theirs.quant_conv(theirs.encoder(x)), lambda: theirs.decoder(theirs.post_quant_conv(z))]
    )
    for module in ours:
        sizes = {name: value.numel() for name, value in module.state_dict().items()}
        source = next(s for s in sources if {n: v.numel() for n, v in s.state_dict().items()} == sizes)
        sources = [each for each in sources if each is not source]
        state = source.state_dict()
        module.load_state_dict({name: state[name].reshape(v.shape) for name, v in module.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(vae.decoder(z + 1), theirs.decoder(theirs.post_quant_conv(z + 1)))
        torch.testing.assert_close(vae.encoder(x + 1), theirs.quant_conv(theirs.encoder(x + 1)))


def _diffusers(case: Case) -> Work:
    model, x, z = _their_model().to(case.device), case.images(), case.latents()
    if case.mode != "step":
        model.eval()
        acts: dict[str, Work] = {
            "forward": lambda: model(x).sample,
            "encode": lambda: model.quant_conv(model.encoder(x)),
            "decode": lambda: model.decoder(model.post_quant_conv(z)),
        }
        return _without_gradients(case, acts[case.mode])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)
    model.train()

    def step() -> float:
        optimizer.zero_grad()
        with _autocast(case):
            posterior = model.encode(x).latent_dist
            output = model.decode(posterior.sample()).sample
        loss = nn.functional.mse_loss(output.float(), x) + 1e-6 * posterior.kl().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def describe(case: Case) -> str:
    return json.dumps(asdict(case))


def main() -> None:
    act = work(Case(**json.loads(sys.stdin.readline())))
    act()  # memory is taken and kernels are made the first times, this one and that of the count
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "count":
            with FlopCounterMode(display=False) as counter:
                act()
            print(counter.get_total_flops(), flush=True)
            continue
        start = time.perf_counter()
        act()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
