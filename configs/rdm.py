"""RDM: masked diffusion as routing and denoising, linear reweighting and label smoothing
(Zheng et al. 2023, arXiv 2302.05737).

Trained by weighted cross-entropy and decoded by routing: the tokens with the highest scores are
kept, and the others become noise again. Published: translation BLEU only. As in the released code
the weight of a time is 1 - t + 1/T with T = 50 (times are continuous here and k / 50 there), label
smoothing is not weighted by it, and the likeliest token is taken at each position (temperature 0),
which suits translation. Rows without a prompt then come out as one and the same text: sample these
with --sampler=temperature=1.
Ours: see docs/results.md, by the code at commit 3aad1fc: weight 1 - t, of the smoothing too, and
temperature 1.
  python -m experiments.train --config=configs/rdm.py:tiny --workdir=runs/rdm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "cross_entropy", "weighting": "linear", "linear_steps": 50}
  c.objective.update({"label_smoothing": 0.1, "weigh_smoothing": False})
  c.sampler = {"name": "routed", "steps": 64, "rate": "cosine", "temperature": 0.0}
  return c
