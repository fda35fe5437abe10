"""The presets compute what diffusers and MONAI compute with the same weights.

Runs where these are installed; the models of 70 million parameters and more take part in `make nightly` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexvae_cli.engine.build import build_sequence
from flexvae_cli.plugins import installed
from flexvae_cli.structure import read_structure

STRUCTURES = Path(__file__).parents[1] / "configs" / "structures"
F8 = (128, 256, 512, 512)
EVIT = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
NORMS, ACTIVATIONS = ("batch_norm",) * 3 + ("rms_norm",) * 3, ("relu",) * 3 + ("silu",) * 3


def kl(latent_channels: int, widths: tuple[int, ...], attention: int = 0) -> dict[str, Any]:
    """A KL autoencoder of latent diffusion, with attention in its `attention` smallest stages."""
    plain = len(widths) - attention
    return {
        "down_block_types": ("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",) * attention,
        "up_block_types": ("AttnUpDecoderBlock2D",) * attention + ("UpDecoderBlock2D",) * plain,
        "block_out_channels": widths,
        "layers_per_block": 2,
        "latent_channels": latent_channels,
    }


# preset -> class of diffusers, its arguments, the latent of 3x64x96, or of 2x6144
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "taesd": ("AutoencoderTiny", {}, (4, 8, 12)),
    "sd-kl-f8": ("AutoencoderKL", {**kl(4, F8), "scaling_factor": 0.18215}, (4, 8, 12)),
    "sd-kl-f8 as SDXL": ("AutoencoderKL", {**kl(4, F8), "scaling_factor": 0.13025}, (4, 8, 12)),
    "ldm-kl-f4c3": ("AutoencoderKL", kl(3, (128, 256, 512)), (3, 16, 24)),
    "ldm-kl-f16c16": ("AutoencoderKL", kl(16, (128, 128, 256, 256, 512), attention=1), (16, 4, 6)),
    "ldm-kl-f32c64": ("AutoencoderKL", kl(64, (128, 128, 256, 256, 512, 512), attention=2), (64, 2, 3)),
    "flux-f8c16": (
        "AutoencoderKL",
        {**kl(16, F8), "use_quant_conv": False, "use_post_quant_conv": False},
        (16, 8, 12),
    ),
    "flux2-f8c32": ("AutoencoderKLFlux2", {}, (32, 8, 12)),
    "vqgan-f16": ("VQModel", kl(256, (128, 128, 256, 256, 512), attention=1), (256, 4, 6)),
    "dc-ae-f32c32": (
        "AutoencoderDC",
        {
            "encoder_block_types": EVIT,
            "decoder_block_types": EVIT,
            "encoder_layers_per_block": (0, 4, 8, 2, 2, 2),
            "decoder_layers_per_block": (0, 5, 10, 2, 2, 2),
            "encoder_qkv_multiscales": ((),) * 6,
            "decoder_qkv_multiscales": ((),) * 6,
            "decoder_norm_types": NORMS,
            "decoder_act_fns": ACTIVATIONS,
        },
        (32, 2, 3),
    ),
    "dc-ae-f32c32-sana": (
        "AutoencoderDC",
        {
            "encoder_block_types": EVIT,
            "decoder_block_types": EVIT,
            "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
            "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
        },
        (32, 2, 3),
    ),
    "oobleck-f2048c64": ("AutoencoderOobleck", {}, (64, 3)),
}


LIGHT = {"taesd"}
HEAVY = pytest.mark.skipif(os.environ.get("FLEXVAE_NIGHTLY") != "1", reason="large models, in `make nightly`")
CASES = [pytest.param(name, marks=[] if name in LIGHT else [HEAVY]) for name in MODELS]


def published(name: str) -> nn.Module:
    """The model of diffusers with weights drawn anew, so that no scale of one or bias of zero hides a mistake."""
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
    kind, arguments, _ = MODELS[name]
    model: nn.Module = getattr(diffusers, kind)(**arguments).eval()
    with torch.no_grad():
        for module in weighted(model):
            for parameter in module.parameters(recurse=False):
                if parameter.numel() == max(parameter.shape):
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def weighted(model: nn.Module) -> list[nn.Module]:
    """The modules that hold weights themselves."""
    return [module for module in model.modules() if list(module.parameters(recurse=False))]


def in_order_of_use(model: nn.Module, compute: Callable[[], object]) -> list[nn.Module]:
    """The modules with weights, as the computation comes to them: libraries declare them in different orders."""
    used: list[nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda module, _: used.append(module)) for m in weighted(model)]
    compute()
    for hook in hooks:
        hook.remove()
    return used


def copy_weights(source: list[nn.Module], target: list[nn.Module]) -> None:
    """Module by module: the same names, and the same numbers (a 1x1 convolution's are those of a linear map)."""
    assert len(source) == len(target)
    for theirs, ours in zip(source, target, strict=True):
        state = theirs.state_dict()
        assert {n: v.numel() for n, v in state.items()} == {n: v.numel() for n, v in ours.state_dict().items()}
        ours.load_state_dict({n: state[n].reshape(v.shape) for n, v in ours.state_dict().items()})


def encode(model: Any, x: Tensor) -> Tensor:
    h = model.encoder(x)
    return h if getattr(model, "quant_conv", None) is None else model.quant_conv(h)


def decode(model: Any, z: Tensor) -> Tensor:
    return model.decoder(z if getattr(model, "post_quant_conv", None) is None else model.post_quant_conv(z))


@pytest.mark.filterwarnings("ignore")  # those of the other library
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_preset_is_the_published_model(name: str) -> None:
    torch.manual_seed(0)
    # Many attentions in a row add up float32's rounding to more than the bound; DC-AE computes in float32 by itself.
    dtype = torch.float64 if name in ("vqgan-f16", "ldm-kl-f16c16", "ldm-kl-f32c64") else torch.float32
    model = published(name).to(dtype)
    latent = MODELS[name][2]
    sample = (3, 64, 96) if len(latent) == 3 else (2, 6144)
    x, z = (torch.rand(1, *sample) * 2 - 1).to(dtype), torch.randn(1, *latent).to(dtype)
    for part, run, given in (("encoder", encode, x), ("decoder", decode, z)):
        file = STRUCTURES / f"{name.partition(' ')[0]}-{part}.json"
        ours = build_sequence(read_structure(file, installed().registry).expanded()).eval().to(dtype)
        sources = in_order_of_use(model, lambda run=run, given=given: run(model, given))
        copy_weights(sources, in_order_of_use(ours, lambda ours=ours, given=given: ours(given)))
        expected, computed = run(model, given), ours(given)
        assert expected.std() > 0.01
        largest = expected.abs().max() if name.startswith("dc-ae") else 1  # its outputs reach 10
        assert (computed - expected).abs().max() <= 1e-5 * max(1, largest), part


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_the_preset_for_volumes_is_the_published_model() -> None:
    nets = pytest.importorskip("monai.networks.nets", reason="compares with MONAI")
    torch.manual_seed(0)
    model = nets.AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=3,
        channels=[64, 128, 128, 128],
        num_res_blocks=2,
        norm_num_groups=32,
        norm_eps=1e-6,
        attention_levels=[False] * 4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ).eval()
    x, z = torch.rand(1, 1, 16, 24, 8) * 2 - 1, torch.randn(1, 3, 2, 3, 1)
    mean, log_variance = model.quant_conv_mu, model.quant_conv_log_sigma
    joined = nn.Conv3d(3, 6, 1)  # two convolutions of one input
    joined.load_state_dict(
        {key: torch.cat([part.conv.state_dict()[key] for part in (mean, log_variance)]) for key in ("weight", "bias")}
    )

    def decoded(latent: Tensor) -> Tensor:
        return model.decoder(model.post_quant_conv(latent))

    for part, run, given in (("encoder", lambda v: joined(model.encoder(v)), x), ("decoder", decoded, z)):
        ours = build_sequence(read_structure(STRUCTURES / f"monai-3d-{part}.json", installed().registry).expanded())
        sources = in_order_of_use(model, lambda run=run, given=given: run(given))
        sources += [joined] * (part == "encoder")
        copy_weights(sources, in_order_of_use(ours.eval(), lambda ours=ours, given=given: ours(given)))
        expected, computed = run(given), ours(given)
        assert expected.std() > 0.01
        assert (computed - expected).abs().max() <= 1e-5 * max(1, expected.abs().max()), part
