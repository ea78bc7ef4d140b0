"""DiffusionBERT: masked diffusion with the spindle schedule, informative tokens lost first
(He et al. 2022, arXiv 2211.15029).

Published: LM1B L=128, unpacked, perplexity 63.78 (as ADLM table 1 has it; D3PM-absorbing 76.90),
from BERT-base, T = 2048; there the network may read no time at all. Here: from scratch, in
continuous time, with the information of a token centred over the corpus, and with a time input,
because the exact posterior depends on the time.
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/diffusionbert.py:tiny --workdir=runs/diffusionbert
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "token_masked", "loss_order": "spindle", "strength": 0.3}
  base.time_conditioned(c)
  return c
