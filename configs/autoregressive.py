"""The autoregressive model: masked diffusion in blocks of one token, in one causal pass.

Its likelihood is exact. It is the baseline that every diffusion model is compared with, through the
same network, trainer, evaluation and sampler.
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/autoregressive.py:tiny --workdir=runs/ar
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing.name = "at_noise"
  c.context.name = "next_token"
  c.reader.name = "cached"
  c.sampler.steps = 1
  return c
