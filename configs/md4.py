"""MD4: masked diffusion with the linear schedule, a time input and a cosine grid of samplers
(Shi et al. 2024, arXiv 2406.04329).

Published: text8 L=256 <= 1.37 bits/char, OpenWebText L=1024 perplexity <= 22.13 (12 x 768, 1M steps
of 512 rows). The published text configs train with the linear schedule, whose weight is 1 / t, and
sample on a cosine grid of times.
Ours: see docs/results.md, by the code at commit 3aad1fc, which trained with the cosine schedule.
  python -m experiments.train --config=configs/md4.py:tiny --workdir=runs/md4
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.model.activation = "swiglu"
  c.sampler.spacing = "cosine"
  base.time_conditioned(c)
  return c
