"""SEDD-absorb: masked diffusion trained by score entropy, with an unnormalised score
(Lou et al. 2024, arXiv 2310.16834).

The score is a free function here, so this is MDLM plus a price on the log-normaliser
(process/masked.py). The network has a time input, as published. The sampler reads the scores as
normalised; the published steps do not: --sampler=name=tau_leaping --sampler=leap=analytic, or
leap=euler. Published: text8 L=256 <= 1.39 bits/char, OpenWebText L=1024 perplexity <= 24.10 (12 x
768).
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/sedd_absorb.py:tiny --workdir=runs/sedd_absorb
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process.prediction = "score"
  base.time_conditioned(c)
  return c
