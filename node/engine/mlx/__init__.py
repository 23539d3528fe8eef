"""MLX through mlx-lm: the only folder that imports it.

backend    a model's directory as a `Backend`: weights, caches, batches, sequences
sampling   how tokens are chosen
state      caches as bytes, and back
"""

from node.engine.mlx.backend import MlxBackend, MlxOptions, fingerprint

__all__ = ["MlxBackend", "MlxOptions", "fingerprint"]
