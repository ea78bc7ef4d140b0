"""DiffusionBERT: masked diffusion with the spindle schedule, informative tokens lost first
(He et al. 2022, arXiv 2211.15029).

Published: LM1B L=128, unpacked, perplexity 63.78 (as ADLM table 1 has it; D3PM-absorbing 76.90),
from BERT-base, T = 2048; there the network may read no time at all. Here: in continuous time, and
from scratch with a time input, because the exact posterior depends on the time; from weights
(docs/adaptation.md) without one. Here the information of a token is centred over the corpus and
scaled so that its largest magnitude is 1, and each token has a law of its own, with an exact bound.
As released it is log(1 + count) over the largest, centred over the row, and the noise is cut to
[0.001, 1]: timing "spindle" with process "masked", a surrogate that is scored with one time for all
tokens of a row, and sampled by the sampler "guessed_times". As released, 0.01 times the
cross-entropy of all tokens is added to the divergence of one of 2048 steps.
Ours: see docs/results.md, by the code at commit 3aad1fc, without that cross-entropy; from MiniLM-L6
after 20,480 tokens 6.778 ± 0.214 nats/token, from scratch 6.937 ± 0.222.
  python -m experiments.train --config=configs/diffusionbert.py:tiny --workdir=runs/diffusionbert
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "token_masked", "loss_order": "spindle", "strength": 0.3}
  c.objective.update({"auxiliary": 0.01, "auxiliary_steps": 2048})
  base.time_conditioned(c)
  return c
