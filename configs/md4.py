"""MD4: masked diffusion with the cosine schedule and a time input
(Shi et al. 2024, arXiv 2406.04329).

Published: text8 L=256 <= 1.37 bits/char, OpenWebText L=1024 perplexity <= 22.13 (12 x 768, 1M steps
of 512 rows).
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/md4.py:tiny --workdir=runs/md4
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process.schedule = {"name": "cosine"}
  c.model.activation = "swiglu"
  base.time_conditioned(c)
  return c
