"""LLaDA: cross-entropy weighted by 1/t, decoded in order of confidence
(Nie et al. 2025, arXiv 2502.09992).

Published: 8B parameters, 2.3T tokens; no small-scale likelihood. Decoding here scores the
distribution at a position, not the drawn token, whose probability gives a biased order at
temperature > 0.
Ours: not yet run.
  python -m experiments.train --config=configs/llada.py:tiny --workdir=runs/llada
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "cross_entropy", "weighting": "inverse_time"}
  c.evaluate.timing = {"name": "exact_count"}  # the same bound at lower variance
  c.model.activation = "swiglu"
  c.sampler = {"name": "reveal", "score": {"name": "max_prob"}}
  c.sampler.budget = {"name": "even_share", "steps": 64}
  base.own(c, "evaluate.timing")
  return c
