"""The program behind `forecast`. Most of what it does is to load torch, and so it does that as cheaply as it can."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

LATER = "torch.fx.experimental.symbolic_shapes"  # that torch loads with the first operation on a meta tensor


def run() -> None:
    """Read a `forecast.Question`, and tell the answer."""
    gc.disable()  # modules stay: the collector need not look through them again and again
    from flexvae_cli.engine.memory.forecaster import answer
    from flexvae_cli.engine.memory.trial import main
    from flexvae_cli.engine.memory.uncompiled import leave_compiler_out

    with suppress(ImportError):
        import_module(LATER)
    leave_compiler_out()
    gc.freeze()
    gc.enable()
    main(answer)


if __name__ == "__main__":
    run()
