"""SEDD-uniform: uniform-state diffusion trained by score entropy (Lou et al. 2024, arXiv 2310.16834).

Published: text8 L=256 <= 1.47 bits/char, LM1B perplexity <= 40.3, OpenWebText <= 29.7 (12 x 768; geometric noise).
The sampler reads the score as a law over clean tokens; its step is then SEDD's analytic ("Tweedie") one.
Ours: see README.
  python -m experiments.train --config=configs/sedd_uniform.py:tiny --workdir=runs/sedd_uniform
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process.name = "uniform"
  c.process.prediction = "score"
  c.schedule.name = "geometric"
  c.schedule.sigma_min = 1e-4
  c.schedule.sigma_max = 20.0
  c.model.time_conditioning = "adaln"
  return c
