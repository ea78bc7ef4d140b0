"""Frequency-informed masking: rarer tokens are masked more
(Kosmopoulou et al. 2025, arXiv 2509.05056, BabyLM).

The noise is n^θ with θ below 1 for rare tokens and above 1 for frequent ones, by rank; a negative
strength masks frequent tokens more. Published: scores of the BabyLM suite, no likelihood. The
published method scales the probabilities within each sequence so that a set share of it is masked;
here each token of the vocabulary has its own probability, and the bound is exact. The schedule is
t², for finite variance.
Ours: no figure yet.
  python -m experiments.train --config=configs/frequency_masked.py --workdir=runs/frequency_masked
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "token_masked", "loss_order": "frequency", "strength": 0.5}
  c.process.schedule = {"name": "polynomial", "power": 2.0}
  base.time_conditioned(c)
  return c
