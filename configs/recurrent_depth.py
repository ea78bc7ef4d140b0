"""Recurrent depth: an autoregressive network whose core is run again and again, decoded by a
wavefront (Geiping et al. 2025, arXiv 2502.05171 and 2510.14961).

Published: Huginn, 3.5B parameters on 800B tokens, 2 + 4 + 2 layers, 32 iterations on average, their
number log-normal Poisson, gradients through the last 8 (recalled); a wavefront is up to five times
as fast as token by token (recalled). The released sampler (seal-rg/recurrent-pretraining) was read:
4 iterations per read, an exit at 0.03, noise 0.5 / (1 + iterations), ema 0.1. Here one layer before
and after, a core of one, and as many iterations as make the depth of the size; other differences
are in `diffusion_text/contrib/recurrent_depth.py` and `wavefront.py`.
Texts are sampled token by token, without a cache; a wavefront takes
  python -m experiments.sample --workdir=runs/recurrent_depth --sampler=name=wavefront \
      --reader=name=wavefront
Ours: `python -m experiments.recurrent_depth --tasks=text --batch=32`, a network of width 64 after
700 updates: 2.04 passes of the core in a row per token where sequential decoding has 4, the same
work and the same greedy tokens. No time was measured.
  python -m experiments.train --config=configs/recurrent_depth.py:tiny \
      --workdir=runs/recurrent_depth
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing.name = "at_noise"
  c.context.name = "next_token_row"
  c.sampler = {"name": "reveal", "score": {"name": "left_to_right"}}
  c.sampler.budget = {"name": "even_share", "steps": c.data.length}
  c.model.name = "recurrent_depth"
  base.own(c, "model.name")
  return c
