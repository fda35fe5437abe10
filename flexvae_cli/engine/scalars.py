"""The numbers that training tells: what each is called, where it belongs, and how it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["loss", "quality", "steering", "discriminator", "speed"]
GROUPS: tuple[Group, ...] = ("loss", "quality", "steering", "discriminator", "speed")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number of the log.

    Attributes:
        title: what a page calls it.
        group: what it belongs to.
        text: how a line of text says it.
        unit: what a page measures it in.
        factor: from the logged number to that unit, and to the one of `text`.
        quiet_zero: whether 0 is worth no word.
    """

    title: str
    group: Group
    text: str
    unit: str = ""
    factor: float = 1.0
    quiet_zero: bool = False

    def said(self, value: float) -> str:
        """The number as a line of text says it."""
        return self.text.format(value * self.factor)


SCALARS: dict[str, Scalar] = {
    "loss": Scalar("loss", "loss", "loss {:.5f}"),
    "psnr": Scalar("PSNR", "quality", "PSNR {:.2f} dB", "dB"),
    "ssim": Scalar("SSIM", "quality", "SSIM {:.4f}"),
    "gradient_norm": Scalar("gradient norm", "steering", "gradient {:.3g}"),
    "lr": Scalar("learning rate", "steering", "lr {:.2e}"),
    "kld_weight": Scalar("KL weight", "steering", "KL weight {:.2e}"),
    "rate": Scalar("rate", "steering", "rate {:.3g} nats", "nats per latent element"),
    "scale": Scalar("loss scale", "steering", "scale {:.0f}"),
    "skipped": Scalar("skipped updates, in all", "steering", "skipped {:.0f}", quiet_zero=True),
    "adversarial_weight": Scalar("adversarial weight", "discriminator", "adversarial weight {:.3g}"),
    "discriminator": Scalar("discriminator loss", "discriminator", "discriminator {:.3g}"),
    "logits_real": Scalar("logits of samples", "discriminator", "real {:.3g}"),
    "logits_fake": Scalar("logits of reconstructions", "discriminator", "fake {:.3g}"),
    "discriminator_gradient_norm": Scalar("discriminator gradient norm", "discriminator", "its gradient {:.3g}"),
    "r1": Scalar("R1 penalty", "discriminator", "R1 {:.3g}"),
    "lecam": Scalar("LeCam regularization", "discriminator", "LeCam {:.3g}"),
    "images_per_second": Scalar("speed", "speed", "{:.3g} images/s", "images/s"),
    "data_wait": Scalar("waiting for data", "speed", "data wait {:.0f} %", "%", 100.0),
    "memory_bytes": Scalar("memory, peak", "speed", "{:.2f} GB", "GB", 1e-9),
}
"""By name; any other number is a term of the loss. Only validation measures quality: in training, `ssim` is a term."""


def scalar(name: str, kind: str = "train") -> Scalar:
    """What is known of a number of training, or of validation; a term of the loss where nothing is."""
    known = SCALARS.get(name)
    if known is not None and (known.group != "quality" or kind == "validation"):
        return known
    if "." in name:  # of a quantizer, as in bottleneck.usage
        return Scalar(name.replace(".", ": "), "steering", f"{name} {{:.3g}}")
    return Scalar(name, "loss", f"{name.replace('{', '{{').replace('}', '}}')} {{:.4g}}")


def line(values: Mapping[str, float], kind: str = "train") -> str:
    """`loss 0.0123 (reconstruction 0.0101, kld 312)  lr 4.0e-04  82.0 images/s  data wait 2 %  1.20 GB`."""
    loss = scalar("loss").said(values["loss"]) if "loss" in values else ""  # none where all updates were skipped
    terms = [scalar(name).said(values[name]) for name in terms_of(values, kind)]
    known = [scalar(name, kind).said(values[name]) for name in _known(values, kind) if name != "loss"]
    first = " ".join(filter(None, (loss, f"({', '.join(terms)})" if terms else "")))
    return "  ".join(filter(None, (first, *known, *_quantizers(values))))


def short_line(values: Mapping[str, float]) -> str:
    """The same of training where there is little room: what matters most comes first, since the end may be cut."""
    first = [name for name in ("loss", "images_per_second", "lr", "data_wait", "memory_bytes") if name in values]
    rest = [name for name in _known(values, "train") if name not in first]
    return "  ".join(scalar(name).said(values[name]) for name in (*first, *terms_of(values), *rest))


def terms_of(names: Iterable[str], kind: str = "train") -> list[str]:
    """The terms of the loss among the names, as they come."""
    return [name for name in names if name != "loss" and scalar(name, kind).group == "loss"]


def _quantizers(values: Mapping[str, float]) -> list[str]:
    """`bottleneck (usage 0.83, entropy 8.2, perplexity 294)`, one for each quantizer; none revived is worth no word."""
    told: dict[str, list[str]] = {}
    for name, value in values.items():
        place, dot, what = name.rpartition(".")
        if dot and (value or what != "revived"):
            told.setdefault(place, []).append(f"{what} {value:.3g}")
    return [f"{place} ({', '.join(each)})" for place, each in told.items()]


def _known(values: Mapping[str, float], kind: str) -> list[str]:
    """The others, in the order of `SCALARS`, without zeros that say nothing."""
    terms = terms_of(values, kind)
    return [n for n, known in SCALARS.items() if n in values and n not in terms and (values[n] or not known.quiet_zero)]
