"""Diffusion-LM: a learned embedding, mean squared error of x0 and rounding (Li et al. 2022, arXiv 2205.14217).

Published: E2E (16 numbers per token) and ROCStories (128), about 80 M parameters, 2000 steps; control success rates, no likelihood that
can be compared. Window of the path: that of the published chain of 2000 steps. The published network regresses x0; ours answers with
a distribution over tokens, whose mean is x0. "nearest" is the clamping trick. Their noise σ0 upon the embedding is the window's first
level here (the z that rounding reads), not added once more at each time.
Ours: 2.749 ± 0.034 bits/char after 500 updates of the README's comparison at equal tokens, too few to judge it by.
  python -m experiments.train --config=configs/diffusion_lm.py:tiny --workdir=runs/diffusion_lm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  width = 16 if size in ("", "micro", "tiny") else 128
  c.process = {"name": "embedding", "width": width, "norm": "none"}
  c.process.schedule = {"name": "sqrt", "log_snr_max": 4.209, "log_snr_min": -15.41}
  c.objective.name = "mse_rounding"
  c.sampler = {"name": "gaussian", "steps": 200, "projection": "nearest"}
  base.told_time(c)
  return c
