"""Duo: uniform-state diffusion after a curriculum of soft tokens from the underlying Gaussian
(Sahoo et al. 2025, arXiv 2506.10892).

Published: LM1B perplexity <= 29.9, OpenWebText <= 25.2 (12 x 768; curriculum for the first half of
1M steps).
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/duo.py:tiny --workdir=runs/duo
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process.name = "uniform"
  c.timing.power = 2.0
  c.objective.name = "gaussian_curriculum"
  base.time_conditioned(c)
  return c
