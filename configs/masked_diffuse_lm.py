"""Masked-Diffuse LM: Diffusion-LM that noises important words first, cross-entropy at every step (Chen et al. 2023, arXiv 2304.04746).

Published: E2E, 500 steps, 128 numbers per token, control tasks; no likelihood. Easy words are generated first. Important is tf-idf times
entropy of a word there and rarity of a token here; soft masks are times that differ by token (see `timing.ByInformation`: a surrogate,
the bound is that of shared times). Window of the path: that of the chain of 500 steps.
Ours: 2.849 ± 0.056 bits/char after 500 updates of the README's comparison at equal tokens, too few to judge it by.
  python -m experiments.train --config=configs/masked_diffuse_lm.py:tiny --workdir=runs/masked_diffuse_lm
"""

from configs import diffusion_lm


def get_config(size: str = "tiny"):
  c = diffusion_lm.get_config(size)
  c.process.schedule = {"name": "sqrt", "log_snr_max": 3.282, "log_snr_min": -13.86}
  c.timing = {"name": "by_information", "informative_first": False}
  c.objective.anchor_weight = 1.0
  return c
