"""SEDD-uniform: uniform-state diffusion trained by score entropy
(Lou et al. 2024, arXiv 2310.16834).

Published: text8 L=256 <= 1.47 bits/char, LM1B perplexity <= 40.3, OpenWebText <= 29.7 (12 x 768;
geometric noise). The sampler reads the scores as a law over clean tokens and steps by its
posterior. The published steps read them as they are, which is not the same where they are off
(process/uniform.py): --sampler=name=tau_leaping --sampler=leap=analytic, or leap=euler.
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/sedd_uniform.py:tiny --workdir=runs/sedd_uniform
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "uniform", "prediction": "score"}
  c.process.schedule = {"name": "geometric", "sigma_min": 1e-4, "sigma_max": 20.0}
  base.time_conditioned(c)
  return c
