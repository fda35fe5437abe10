"""The seed's autoencoder in plain PyTorch, the way the original project works: what `speed.py` and others compare with.

    python benchmarks/baseline.py [--size 256] [--batch 1] [--steps 5]

NCHW in fp32, layers as they are written, SSIM with its default settings, AdamW, images decoded in full and encoded one
at a time. It imports nothing of FlexVAE. Attention is the one that the structure language states: over all positions,
behind its norm. Times are printed, nothing is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pytorch_msssim import SSIM
from torch import Tensor, nn
from torch.nn import functional as F

STRUCTURES = Path(__file__).parents[1] / "configs/structures"


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(32, in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


class AttentionBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.projections = nn.ModuleList(nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).view(b, c, h * w).transpose(1, 2)
        query, key, value = (project(tokens) for project in self.projections[:3])
        tokens = self.projections[3](F.scaled_dot_product_attention(query, key, value))
        return x + tokens.transpose(1, 2).reshape(b, c, h, w)


LAYERS = {
    "C2d": nn.Conv2d,
    "VAERB": ResidualBlock,
    "VAEA": AttentionBlock,
    "GN": nn.GroupNorm,
    "SiLU": nn.SiLU,
    "MaxP": nn.MaxPool2d,
    "UpS": lambda factor: nn.Upsample(scale_factor=factor),
}


def narrowed(code: str, divisor: int) -> str:
    """A code with channels, the numbers from 128 on, divided."""
    return "_".join(str(int(p) // divisor) if p.isdigit() and int(p) >= 128 else p for p in code.split("_"))


def codes_of(name: str, divisor: int = 1) -> list[str]:
    """`encoder` or `decoder` of the seed, its channels divided."""
    return [narrowed(code, divisor) for code in json.loads((STRUCTURES / f"{name}.json").read_text())]


def layers(codes: Sequence[str]) -> Iterator[nn.Module]:
    for code in codes:
        count, star, rest = code.rpartition("*")
        name, *arguments = rest.split("_")
        for _ in range(int(count) if star else 1):
            yield LAYERS[name](*map(int, arguments))


class Autoencoder(nn.Module):
    """Encoder, posterior, decoder."""

    def __init__(self, divisor: int = 1) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*layers(codes_of("encoder", divisor)))
        self.decoder = nn.Sequential(*layers(codes_of("decoder", divisor)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log-variance; in evaluation the mean is decoded."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        return self.decoder(z), mean, log_variance


class Training:
    """A step of the seed's training: MSE, KL divergence and SSIM."""

    def __init__(self, model: Autoencoder) -> None:
        self.model = model.train()
        self.ssim = SSIM(data_range=2.0)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)

    def step(self, x: Tensor) -> float:
        self.optimizer.zero_grad()
        reconstruction, mean, log_variance = self.model(x)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / len(x)
        loss = F.mse_loss(reconstruction, x) + 1e-6 * divergence + 0.5 * (1 - self.ssim(reconstruction, x))
        loss.backward()
        self.optimizer.step()
        return loss.item()


def read_image(path: Path, size: int) -> Tensor:
    """(1, 3, size, size) in [-1, 1]: decoded in full, padded to a square, resized to 1.25 times the size, cropped."""
    from PIL import Image, ImageOps

    image = Image.open(path).convert("RGB")
    image = ImageOps.pad(image, (max(image.size),) * 2)
    image = image.resize((size * 5 // 4,) * 2, Image.Resampling.BILINEAR)
    low = (image.width - size) // 2
    data = torch.frombuffer(bytearray(image.crop((low, low, low + size, low + size)).tobytes()), dtype=torch.uint8)
    return data.view(1, size, size, 3).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


@torch.no_grad()
def encode_folder(model: Autoencoder, paths: Sequence[Path], size: int, output: Path) -> None:
    """Latents of images, one at a time, a file each."""
    model.eval()
    for path in paths:
        mean, _ = model.encoder(read_image(path, size)).chunk(2, dim=1)
        torch.save(mean, output / f"{path.stem}.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 256), ("batch", 1), ("steps", 5), ("divisor", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    torch.manual_seed(0)
    training = Training(Autoencoder(wanted.divisor))
    x = torch.rand(wanted.batch, 3, wanted.size, wanted.size) * 2 - 1
    times = []
    for _ in range(wanted.steps + 1):
        start = time.perf_counter()
        training.step(x)
        times.append(time.perf_counter() - start)
    print(f"{statistics.median(times[1:]):.3f} s a step, of {min(times[1:]):.3f} to {max(times[1:]):.3f}")


if __name__ == "__main__":
    main()
