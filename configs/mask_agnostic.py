"""Masked diffusion whose predictions should not depend on how many masks follow the text
(mask-agnostic loss, arXiv 2511.21338).

Published: retrieval accuracies only.
Ours: not yet run.
  python -m experiments.train --config=configs/mask_agnostic.py:tiny --workdir=runs/mask_agnostic
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective.name = "mask_agnostic"
  return c
