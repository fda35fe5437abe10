"""How long commands that only look take from the shell, against importing torch and against an empty Python.

    python benchmarks/startup.py [ROUNDS]

Each round runs every command once, so that all of them see the same machine; medians of whole processes are compared.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import write_section

ROOT = Path(__file__).parents[1]
FLEXVAE = str(Path(sys.executable).with_name("flexvae"))
ENCODER = str(ROOT / "configs/structures/encoder.json")
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "flexvae --help": [FLEXVAE, "--help"],
    "flexvae layers": [FLEXVAE, "layers"],
    "flexvae inspect encoder.json": [FLEXVAE, "inspect", ENCODER],
    "flexvae inspect encoder.json --json": [FLEXVAE, "inspect", ENCODER, "--json"],
    "flexvae config check seed.toml": [FLEXVAE, "config", "check", "--config", str(ROOT / "configs/seed.toml")],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main(rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            if number:  # the first round warms the disk cache
                times[name].append(taken)
    medians = {name: statistics.median(t) for name, t in times.items()}
    torch = medians["python -c 'import torch'"]
    rows = [
        f"| `{name}` | {medians[name]:.2f} s | {min(t):.2f} to {max(t):.2f} s | {medians[name] / torch:.2f} |"
        for name, t in times.items()
    ]
    head = "| command | median | spread | of importing torch |\n| --- | --- | --- | --- |\n"
    write_section("Start-up", f"Whole processes, {rounds} rounds of all commands in turn.\n\n" + head + "\n".join(rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
