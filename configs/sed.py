"""SED: self-conditioned diffusion of frozen embeddings (Strudel et al. 2022, arXiv 2211.04236).

Published: C4, 135 M and 420 M parameters, pretrained embeddings projected to few dimensions and
frozen, x0 regression and a read-out cross-entropy, self-conditioning in half of the rows, 1000
steps; said to be on par with autoregressive models, no likelihood. Concatenating the last estimate
to the input is the same as adding it through a linear map, which is zero at first. Here the frozen
table is random unless `experiments.convert --table=principal` takes it from a pretrained model
(docs/adaptation.md), its 64 numbers per token are our choice, and the read-out is the
network's prediction itself. The window of the path is that of the usual cosine chain of 1000
steps. Infilling is any choice of observed tokens. For guidance, on data with
observed tokens, set train.prompt_dropout and use the reader "classifier_free" with a scale.
Ours: 2.609 ± 0.122 bits/char after 500 updates of the comparison at equal tokens in
docs/results.md, by the code at commit 3aad1fc; too few to judge it by.
  python -m experiments.train --config=configs/sed.py:tiny --workdir=runs/sed
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "embedding", "width": 64, "norm": "sqrt_d", "learned": False}
  c.process.schedule = {"name": "cosine", "log_snr_max": 10.09, "log_snr_min": -19.84}
  c.objective = {"name": "mse_rounding", "anchor_weight": 1.0}
  c.objective.rounding_weight = 0.0  # it would teach the embeddings, which are frozen
  c.sampler = {"name": "gaussian", "steps": 1000}
  base.time_conditioned(c)
  base.self_conditioned(c, 0.5)
  return c
