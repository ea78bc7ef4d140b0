"""D3PM-uniform: uniform-state diffusion in T discrete steps (Austin et al. 2021, arXiv 2107.03006).

Published: text8 L=256 <= 1.61 / 1.68 / 1.79 bits/char at T = 1000 / 256 / 20 (12 x 768). It was
released without the auxiliary cross-entropy, and so it is here. The published reverse step is
p(z_s | z_t) ∝ q(z_t | z_s) Σ_v q(z_s | v) p_v, in which p is the prediction that leaves the token
itself out (process.prediction "leave_one_out").
Ours: 2.175 ± 0.039 bits/char after 200 updates of the table at equal tokens in
docs/results.md, where a character 5-gram has 1.822.
  python -m experiments.train --config=configs/d3pm_uniform.py:tiny --workdir=runs/d3pm_uniform
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "uniform", "time_steps": 1000}
  base.time_conditioned(c)
  return c
