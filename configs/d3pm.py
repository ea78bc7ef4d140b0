"""D3PM-absorbing: masked diffusion in T discrete steps, with its auxiliary cross-entropy
(Austin et al. 2021, arXiv 2107.03006).

Published: text8 L=256 <= 1.45 / 1.47 / 1.56 bits/char at T = 1000 / 256 / 20 (12 x 768); LM1B
perplexity <= 76.9. As in the released code 0.01 times the cross-entropy of all tokens, masked or
not, is added to the divergence of one of the 1000 steps, so that it weighs ten times as much as the
bound. (Without objective.auxiliary_steps it is that of the masked tokens beside the whole bound,
of which it is then about a 200th.)
Ours: see docs/results.md, by the code at commit 3aad1fc, with the second of these.
  python -m experiments.train --config=configs/d3pm.py:tiny --workdir=runs/d3pm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process.time_steps = 1000
  c.objective.update({"auxiliary": 0.01, "auxiliary_steps": 1000})
  base.time_conditioned(c)
  return c
