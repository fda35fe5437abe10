"""The sections of the page, each a piece of HTML; every text of the run's goes through `escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from flexvae_cli.config.toml_writer import to_toml
from flexvae_cli.engine.report.axis import number
from flexvae_cli.engine.report.curves import curves
from flexvae_cli.engine.report.defaults import not_default
from flexvae_cli.engine.report.facts import Facts
from flexvae_cli.engine.report.histogram import histogram
from flexvae_cli.engine.report.markup import folded, image, table
from flexvae_cli.engine.report.summary import span, summary

MOST_ROWS = 200  # of bad files, or channels
MOST_LINES = 40  # of the log
STATUS = {
    "finished": "finished",
    "training": "training now",
    "stopped": "stopped, can be resumed",
    "diverged": "diverged: see the log",
    "interrupted": "interrupted, can be resumed",
}


def header(facts: Facts) -> str:
    """Name, status and the numbers that one looks at first."""
    length = f" of {facts.max_steps:,}" if facts.max_steps else ""
    made = f"flexvae {facts.flexvae}" if facts.flexvae else ""
    facts_line = [f"step {facts.step:,}{length}", facts.images, facts.device, span(facts), made]
    status = f'<span class="status {facts.status}">{escape(STATUS[facts.status])}</span>'
    line = " &middot; ".join(escape(text) for text in facts_line if text)
    done = f'<progress max="{facts.max_steps}" value="{facts.step}"></progress>' if _is_going_on(facts) else ""
    problems = "".join(f'<p class="problem">{escape(text)}</p>' for text in facts.problems)
    return f"<header><h1>{escape(facts.name)} {status}</h1><p>{line}</p>{done}{_cards(facts)}{problems}</header>"


def _is_going_on(facts: Facts) -> bool:
    return bool(facts.max_steps) and facts.status != "finished"


def _cards(facts: Facts) -> str:
    found = summary(facts)
    best = found["best_psnr"]
    cards = [
        ("PSNR", found["psnr"], "{:.2f}", "dB", f"best {best['psnr']:.2f} at {number(best['step'])}" if best else ""),
        ("SSIM", found["ssim"], "{:.4f}", "", "validation"),
        ("validation loss", found["validation_loss"], "{:.4g}", "", ""),
        ("training loss", found["loss"], "{:.4g}", "", "last mean"),
        ("speed", found["images_per_second"], "{:.3g}", "images/s", "median"),
        ("memory", (found["memory_bytes"] or 0) / 1e9 or None, "{:.2f}", "GB", "peak"),
        ("bad files", found["bad_files"] or None, "{}", "", "left out"),
        ("skipped updates", found["skipped"] or None, "{}", "", "not finite"),
    ]
    shown = [
        f"<div><dt>{title}</dt><dd>{text.format(value)} <small>{unit}</small></dd><small>{note}</small></div>"
        for title, value, text, unit, note in cards
        if value is not None
    ]
    return f'<dl class="cards">{"".join(shown)}</dl>' if shown else ""


def charts(facts: Facts) -> str:
    """Every number over the steps."""
    groups = [f'<h3>{escape(title)}</h3><div class="charts">{"".join(found)}</div>' for title, found in curves(facts)]
    return "".join(groups) or '<p class="none">Nothing was logged yet.</p>'


def structure(document: dict[str, Any] | None, drawing: bytes | None, problem: str = "") -> str:
    """The net: its drawing, what it takes and gives, and the table of its layers."""
    if document is None:
        return f'<p class="none">{escape(problem)}</p>' if problem else ""
    shapes = ["×".join(map(str, document[key] or ())) for key in ("input", "latent", "output")]
    line = " → ".join(shape for shape in shapes if shape)
    size = f"{document['parameters']:,} parameters, {number(document['macs'])} multiply-adds per sample"
    less = f", {document['compression']:.3g} times fewer numbers in the latent" if document["compression"] else ""
    drawn = f'<div class="wide paper">{image(drawing, "svg+xml", "the layers of the net")}</div>' if drawing else ""
    rows = [
        (part["name"] if not index else "", row["key"], row["code"], *(_shape(row[k]) for k in ("input", "output")),
         row["layer"], f"{row['parameters']:,}", number(row["macs"]))
        for part in document["parts"]
        for index, row in enumerate(part["rows"])
    ]  # fmt: skip
    drawn += f'<p class="none">{escape(problem)}</p>' if problem else ""
    columns = ("part", "#", "code", "in", "out", "layer", "parameters", "multiply-adds")
    layers = folded(f"{len(rows)} layers", table(columns, rows, numbers=2))
    return f"<p>{escape(line)}: {escape(size + less)}</p>{drawn}{layers}"


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def latents(found: dict[str, Any] | None, problem: str = "") -> str:
    """The channels of the latent: a histogram each, and a table."""
    if found is None:
        return f'<p class="none">Not measured: {escape(problem)}</p>' if problem else ""
    channels, kl = found["channels"][:MOST_ROWS], found["kl_per_image"]
    positions = f"{found['positions']:,} positions of {found['images']} images"
    active = found["active"]
    line = f"{found['checkpoint']}, {positions}; {active['channels']} of {len(found['channels'])} channels are active "
    line += f"(variance above {active['above']})" + (f"; KL {kl:,.0f} nats per image" if kl is not None else "")
    line += ". The line is the standard normal."
    reach = max((max(abs(c["min"]), abs(c["max"])) for c in channels), default=1.0)
    drawn = [histogram(c, h, reach) for c, h in zip(channels, found["histograms"], strict=False)]
    rows = [
        (c["channel"], f"{c['mean']:.4f}", f"{c['std']:.4f}", f"{c['min']:.3f}", f"{c['max']:.3f}",
         "–" if c["kl"] is None else f"{c['kl']:.4f}", "yes" if c["active"] else "no")
        for c in channels
    ]  # fmt: skip
    columns = ("channel", "mean", "std", "min", "max", "KL (nats per position)", "active")
    details = folded("Numbers", table(columns, rows, numbers=7))
    return f'<p>{escape(line)}</p><div class="histograms">{"".join(drawn)}</div>{details}'


def config(facts: Facts) -> str:
    """The settings as TOML: those that are not the default, and all of them."""
    if not facts.settings:
        return ""
    everything = f"<pre>{escape(to_toml(_given(facts.settings)))}</pre>"
    own = not_default(facts.settings)
    if own is None:
        return everything
    return (
        f"<p>What is not the default:</p><pre>{escape(to_toml(_given(own)))}</pre>{folded('Every setting', everything)}"
    )


def _given(value: Any) -> Any:
    """Without keys that have no value, which TOML cannot say."""
    if isinstance(value, dict):
        return {key: _given(inner) for key, inner in value.items() if inner is not None}
    return [_given(inner) for inner in value if inner is not None] if isinstance(value, list) else value


def troubles(facts: Facts) -> str:
    """Files that could not be used, and updates that were skipped."""
    bad = table(("file", "reason"), facts.bad_files[:MOST_ROWS]) if facts.bad_files else ""
    more = len(facts.bad_files) - MOST_ROWS
    rest = f"<p>and {more:,} more in bad_files.jsonl</p>" if more > 0 else ""
    steps = [(step, ", ".join(names)) for step, names in facts.skipped[:MOST_ROWS]]
    skipped = table(("skipped update of step", "its images"), steps) if steps else ""
    return bad + rest + skipped


def environment(facts: Facts) -> str:
    """Where it ran, and the end of the log."""
    rows = [("flexvae", facts.flexvae), *facts.environment.items()]
    tail = "\n".join(facts.log[-MOST_LINES:])
    log = folded("End of the log", f"<pre>{escape(tail)}</pre>") if tail.strip() else ""
    return table(("", ""), [row for row in rows if row[1] != ""]) + log
