"""D3PM-uniform: uniform-state diffusion in T discrete steps (Austin et al. 2021, arXiv 2107.03006).

Published: text8 L=256 <= 1.61 / 1.68 / 1.79 bits/char at T = 1000 / 256 / 20 (12 x 768).
Ours: not yet run.
  python -m experiments.train --config=configs/d3pm_uniform.py:tiny --workdir=runs/d3pm_uniform
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  # prediction: as the auxiliary cross-entropy teaches it
  c.process = {"name": "uniform", "time_steps": 1000, "prediction": "posterior"}
  c.objective.auxiliary = 0.01
  base.time_conditioned(c)
  return c
