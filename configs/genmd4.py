"""GenMD4: masked diffusion that learns when each token of the vocabulary is lost
(Shi et al. 2024, arXiv 2406.04329).

The noise is t^power with a power per token that begins at 1; the gradient through the draw itself
comes from the score function (objective "score_function"). Published: text8 L=256 <= 1.34
bits/char, OpenWebText L=1024 perplexity <= 21.80 (12 x 768, 1M steps of 512 rows; MD4: 1.37,
22.13). The paper finds that learned powers overfit: zero-shot perplexity is worse than MD4's.
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/genmd4.py:tiny --workdir=runs/genmd4
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "token_masked", "loss_order": "learned"}
  c.objective.name = "score_function"
  c.model.activation = "swiglu"
  base.time_conditioned(c)
  return c
