"""Efficient-DLM: blocks over a clean context, later tokens of a block masked more.

Here the times lie on a slanted line within the block, which keeps the bound; the published weights
exp(beta (1 - t) i) do not. Published: 8B models adapted from autoregressive ones, by accuracy.
Ours: not yet run.
  python -m experiments.train --config=configs/efficient_dlm.py:tiny --workdir=runs/efficient_dlm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing = {"name": "slanted", "spread": 1.0}
  c.context = {"name": "blocks", "size": 16}
  c.reader.name = "cached"
  c.sampler.steps = 16
  return c
