"""LLaDA: cross-entropy weighted by 1/t, decoded in order of confidence
(Nie et al. 2025, arXiv 2502.09992).

Published: 8B parameters, 2.3T tokens; no small-scale likelihood. Decoding is greedy (temperature
0), as published, for answers to a prompt; rows without one then come out as one and the same text:
sample these with --sampler=temperature=1. 64 calls are a laptop's choice, where the released code
has 128. Above temperature 0 the published order is that of the drawn tokens' probabilities, which
is biased; here the distribution at a position is scored, and at temperature 0 the two are the same.
One training row in a hundred is cut to a random length, as published.
Ours: 2.148 ± 0.008 bits/char after 200 updates of the table at equal tokens in
docs/results.md, where a character 5-gram has 1.822.
  python -m experiments.train --config=configs/llada.py:tiny --workdir=runs/llada
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "cross_entropy", "weighting": "inverse_time"}
  c.evaluate.timing = {"name": "exact_count"}  # the same bound at lower variance
  c.model.activation = "swiglu"
  c.sampler = {"name": "reveal", "score": {"name": "max_prob"}, "temperature": 0.0}
  c.sampler.budget = {"name": "even_share", "steps": 64}
  c.data.short_rows = 0.01
  base.own(c, "evaluate.timing", "data.short_rows")
  return c
