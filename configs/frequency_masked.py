"""Frequency-informed masking: rarer tokens are masked more
(Kosmopoulou et al. 2025, arXiv 2509.05056, BabyLM).

The probability of a mask is scaled within each row, so that its mean is what the clock says, and
the power of the ranks grows from 0 to 0.02 in the course of training, as published. Training is
a surrogate, and is scored with one time for all tokens of a row. Texts are made at the times that
the tokens have in training, as they are guessed (sampler "guessed_times"); the published models
make none. Before, this config had
process.name='token_masked' with loss_order='frequency', where each token of the vocabulary has a
probability of its own and the bound is exact. Published with a cosine and other schedules, here
with the linear one; scores of the BabyLM suite, no likelihood.
Ours: after 0.6 epochs of small networks tokens that occur 10 to 99 times in the training text cost
0.068 ± 0.018 nats more than with power 0, and 1.01 ± 0.05 more with power 1 (docs/results.md, "What
rare tokens cost").
  python -m experiments.train --config=configs/frequency_masked.py --workdir=runs/frequency_masked
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing = {"name": "by_frequency", "power": 0.02}
  c.sampler = {"name": "guessed_times", "steps": 64}
  base.time_conditioned(c)
  return c
