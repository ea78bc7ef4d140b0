"""UDLM: uniform-state diffusion on its continuous-time bound
(Schiff et al. 2024, arXiv 2412.10193).

Published: LM1B perplexity <= 31.3, OpenWebText <= 27.4 (12 x 768, 1M steps of 512 rows).
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/udlm.py:tiny --workdir=runs/udlm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process.name = "uniform"
  c.timing.power = 2.0
  base.time_conditioned(c)
  return c
