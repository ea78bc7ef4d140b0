"""The γ-hybrid of hyperschedules: the mask absorbs and what survives is scrambled, along a wave
(Fathi et al. 2025, arXiv 2504.06416).

Published: the figures on OpenWebText and LM1B are of other sizes and are not repeated here. The
released loss is the entropy of free scores, plus the mean cross-entropy of tokens that are settled
already; its config for OpenWebText has one block as wide as the row (1024 tokens, 2048 levels),
where no token is settled before the last, and leaves waves to smaller widths. Here the bound alone
is trained, along a wave of half a row. The released loss is process.prediction="score" with
objective {"name": "settled_tokens", "block": 128}, but for this: the released ratios are those of
masks and of random tokens each by itself, at the whole noise, where ours are those of both
together. By the released ones exact scores cost less than the entropy (2.091 nats, not 2.111, at
the share of 0.01: tests/process/hybrid_scores_test.py), so that what they give is no bound. The
ε-hybrid is process.mixing="epsilon", as published with process.onset=0.001 (what this costs:
process/mixed.py) and sampler.name="adaptive_correction". A wave is decoded over a cache by
reader.name="delayed_cache" with moving=True, exactly with context.name="causal".
Ours: 2.154 ± 0.049 bits/char after 200 updates of the table at equal tokens in
docs/results.md, where a character 5-gram has 1.822.
  python -m experiments.train --config=configs/hdlm.py:tiny --workdir=runs/hdlm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "mixed", "mixing": "gamma", "share": 0.01}
  c.timing = {"name": "hyperschedule", "kind": "wave", "width": 128}
  c.sampler.steps = 128
  base.time_conditioned(c)
  return c
