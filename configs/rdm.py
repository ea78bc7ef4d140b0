"""RDM: masked diffusion as routing and denoising, linear reweighting and label smoothing (Zheng et al. 2023, arXiv 2302.05737).

Trained by weighted cross-entropy, decoded by routing: the surest tokens are kept, the others are noise again.
Published: translation BLEU only. Ours: see README.
  python -m experiments.train --config=configs/rdm.py:tiny --workdir=runs/rdm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "cross_entropy", "weighting": "linear", "label_smoothing": 0.1}
  c.sampler = {"name": "routed", "steps": 64, "rate": "cosine"}
  return c
