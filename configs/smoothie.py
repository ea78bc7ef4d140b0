"""Smoothie: diffusion of distances between embeddings (Shabalin et al. 2025, arXiv 2505.18853).

Published: sequence-to-sequence on QQP, XSum, Quasar-T, Newsela, 200 steps, frozen BERT embeddings
of 768 numbers. Here the embeddings are random, of 64 numbers, and frozen; they have no meaning that
noise could smooth over, so the idea needs a pretrained table: `experiments.convert --table=exact`
or `principal` (docs/adaptation.md). The loss is cross-entropy, which is
one of the published ones. A step adds fresh noise to the expected distances, and the last one takes
the likeliest token. Half of the rows are self-conditioned. The state is [B, L, V].
Ours: 2.963 ± 0.004 bits/char after 500 updates of the comparison at equal tokens in
docs/results.md, by the code at commit 3aad1fc; too few to judge it by.
  python -m experiments.train --config=configs/smoothie.py:tiny --workdir=runs/smoothie
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "distance", "width": 64}
  c.process.schedule = {"name": "arctangent", "log_snr_max": 5.0, "log_snr_min": -19.5}
  c.objective.name = "cross_entropy"
  c.sampler = {"name": "gaussian", "steps": 200, "rho": 1.0, "greedy_tail": True}
  base.time_conditioned(c)
  base.self_conditioned(c, 0.5)
  return c
