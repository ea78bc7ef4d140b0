"""Diffusion Forcing: every token has a time of its own
(Chen et al. 2024, arXiv 2407.01392), here with masks.

Published for video and control, not for text.
Ours: not yet run.
  python -m experiments.train --config=configs/diffusion_forcing.py --workdir=runs/diffusion_forcing
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing.name = "independent"
  return c
