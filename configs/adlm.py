"""ADLM: masked diffusion whose first layers predict the rare words, for the other layers to read
(Rout et al. 2025, arXiv 2505.18456).

Published: OpenWebText L=1024 perplexity <= 21.66 / 20.62 / 20.14 at 110B / 262B / 524B tokens,
against <= 23.17 for MDLM retrained; without the loss of the anchor (anchor_weight 0) <= 21.79. LM1B
<= 26.40 / 24.46 at 33B / 65B. Batches of 512 rows, learning rate 3e-4, no weight decay; 12 anchor
layers and 6 more, as two networks. Here two thirds of the layers of a size belong to the anchor, so
that the depth is that of the models compared with. The published depth is
  --config=configs/adlm.py:small --config.model.layers=18 --config.model.first_stage_layers=12
Ours: 2.175 ± 0.036 bits/char after 200 updates of the table at equal tokens in
docs/results.md, where a character 5-gram has 1.822.
  python -m experiments.train --config=configs/adlm.py:tiny --workdir=runs/adlm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective.name = "anchored"
  fit_to_size(c)
  c.optimizer.weight_decay = 0.0
  base.own(c, "model.first_stage_layers", "optimizer.weight_decay")
  return c


def fit_to_size(c):
  """Two thirds of the layers belong to the first stage, whatever their number."""
  c.model.first_stage_layers = max(2 * c.model.layers // 3, 1)
