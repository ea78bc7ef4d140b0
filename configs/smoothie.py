"""Smoothie: diffusion of distances between embeddings (Shabalin et al. 2025, arXiv 2505.18853).

Published: sequence-to-sequence on QQP, XSum, Quasar-T, Newsela, 200 steps, frozen BERT embeddings of 768 numbers. Here random embeddings of
64, frozen, which have no meaning that noise could smooth over: a pretrained table is what the idea needs. The loss is cross-entropy,
which is one of theirs. A step noises the expected distances anew. Half of the rows are told the last prediction.
The state is [B, L, V].
Ours: 2.963 ± 0.004 bits/char after 500 updates of the README's comparison at equal tokens, too few to judge it by.
  python -m experiments.train --config=configs/smoothie.py:tiny --workdir=runs/smoothie
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "distance", "width": 64}
  c.process.schedule = {"name": "arctangent", "log_snr_max": 5.0, "log_snr_min": -19.5}
  c.objective.name = "cross_entropy"
  c.sampler = {"name": "gaussian", "steps": 200, "rho": 1.0}
  base.told_time(c)
  base.self_conditioned(c, 0.5)
  return c
