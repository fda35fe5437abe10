"""Runs the contract of a plugin in a process of its own, and reads what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from flexvae_cli.kit.contract import Finding
from flexvae_cli.kit.distribution import Found

LONGEST = 900
"""Seconds that the check of a plugin may take."""


def check(plugin: Found) -> list[Finding]:
    """What is found of a plugin, part by part.

    A process that its plugin ends early, or never, is a finding like any other.
    """
    command = [sys.executable, "-P", "-m", "flexvae_cli.kit.contract", plugin.name]
    paths = [*map(str, plugin.folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    reading: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace"}
    try:
        done = subprocess.run(command, **reading, env=environment, timeout=LONGEST, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [Finding("plugin", "process", "mend", (f"the process that checks it goes on after {LONGEST} s",))]
    try:
        return [_finding(each) for each in json.loads(done.stdout)]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        says = f"the process that checks it ends with code {done.returncode}: {last}"
        return [Finding("plugin", "process", "mend", (says,))]


def _finding(plain: dict[str, Any]) -> Finding:
    return Finding(**{**plain, "says": tuple(plain["says"])})
