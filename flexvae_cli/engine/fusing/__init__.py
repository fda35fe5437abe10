"""The graph pass: after a net is built, neighbours that compute faster as one do so.

What is computed is the same up to rounding; modules, their names, parameters and `state_dict` stay as they are, because
kernels that join two layers are made from their weights on the fly, in training too. A layer that somebody looks at
through a hook is computed by itself. `engine/rules.py` says where a fusion pays.
"""

from flexvae_cli.engine.fusing.graph import Chain, Fused, fuse, fused_in, joined, steps_of, would_fuse

__all__ = ["Chain", "Fused", "fuse", "fused_in", "joined", "steps_of", "would_fuse"]
