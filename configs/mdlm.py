"""MDLM: masked diffusion with the linear schedule and no time input
(Sahoo et al. 2024, arXiv 2406.07524).

Published: text8 L=256 <= 1.40 bits/char, OpenWebText L=1024 perplexity <= 23.21 (12 x 768, 1M steps
of 512 rows).
Ours: on the bundled corpus, see docs/results.md, by the code at commit 3aad1fc; `small` not yet
run.
  python -m experiments.train --config=configs/mdlm.py:tiny --workdir=runs/mdlm
"""

from configs import base


def get_config(size: str = "tiny"):
  return base.config(size)
