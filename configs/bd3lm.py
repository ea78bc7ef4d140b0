"""BD3-LM: masked diffusion in blocks over a clean context (Arriola et al. 2025, arXiv 2503.09573).

Published: OpenWebText L=1024 perplexity <= 22.27 / 21.68 / 20.73 with blocks of 16 / 8 / 4 (12 x
768, 850k + 150k steps of 512 rows). Clipped training times (timing.low, timing.high) lower the
variance; `python -m experiments.clip --workdir=runs/bd3lm` finds them for a trained model. The
published default is first-hitting sampling, of at most one call per token; 1000 steps whose idle
calls are skipped come to the same.
Ours: see docs/results.md, by the code at commit 3aad1fc.
  python -m experiments.train --config=configs/bd3lm.py --config.context.size=4 --workdir=runs/bd3lm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.context = {"name": "blocks", "size": 16}
  c.reader.name = "cached"
  c.sampler.update({"steps": 1000, "skip": True})
  return c
