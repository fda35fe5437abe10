"""How long `flexvae mem --gpu` takes from the shell: what one batch needs, and the largest that fits.

    python benchmarks/predicting.py [ROUNDS]

prints the table that `memory.py` puts into its section. Every run is a fresh process, its own child included.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
GPU, BATCH = "h100-80", 8
SEED = ["--config", str(ROOT / "configs/seed.toml"), "--gpu", GPU, "--json"]
FLEXVAE = [str(Path(sys.executable).with_name("flexvae")), "--quiet", "mem"]
COMMANDS = {
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    f"flexvae mem --config configs/seed.toml --gpu {GPU} --assert-batch {BATCH}": [
        *FLEXVAE,
        *SEED,
        "--assert-batch",
        str(BATCH),
    ],
    f"flexvae mem --config configs/seed.toml --gpu {GPU}": [*FLEXVAE, *SEED],
}


def taken_by(command: list[str]) -> tuple[float, float, str]:
    """Seconds from the shell, seconds of CPU in all its processes, and the answer."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    taken, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def time_section(rounds: int = 3) -> str:
    """What a prediction takes, as a table; medians of so many rounds of all commands in turn."""
    runs = [{name: taken_by(command) for name, command in COMMANDS.items()} for _ in range(rounds)]
    rows = []
    for name in COMMANDS:
        wall, cpu = (statistics.median(run[name][column] for run in runs) for column in (0, 1))
        answer = runs[0][name][2]
        followed = str(json.loads(answer)["evaluations"]) if answer else ""
        rows.append(f"| `{name}` | {wall:.1f} s | {cpu:.1f} s | {followed} |")
    told = (
        f"How long a prediction takes from the shell, medians of {rounds} fresh processes. Every answer has what the "
        "batch needs, and the largest batch that fits; a batch is followed through two whole training steps."
    )
    head = "| command | time | of CPU | batches followed |\n| --- | ---: | ---: | ---: |\n"
    return f"{told}\n\n{head}" + "\n".join(rows)


if __name__ == "__main__":
    print(time_section(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
