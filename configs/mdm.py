"""MDM with multi-granularity reweighting: hard tokens and noisy rows count more
(Ye et al. 2024, arXiv 2410.14157).

Published: Sudoku and Countdown accuracies only (planning tasks, a 6M to 303M network).
Ours: not yet run.
  python -m experiments.train --config=configs/mdm.py:tiny --workdir=runs/mdm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "cross_entropy", "weighting": "linear", "focusing": 1.0}
  c.sampler = {"name": "routed", "steps": 64}
  return c
