"""RDM: masked diffusion as routing and denoising, linear reweighting and label smoothing
(Zheng et al. 2023, arXiv 2302.05737).

Trained by weighted cross-entropy and decoded by routing: the tokens with the highest scores are
kept, and the others become noise again. Published: translation BLEU only.
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/rdm.py:tiny --workdir=runs/rdm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "cross_entropy", "weighting": "linear", "label_smoothing": 0.1}
  c.sampler = {"name": "routed", "steps": 64, "rate": "cosine"}
  return c
