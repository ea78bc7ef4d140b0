"""The base of generators and judges of short texts with records, for `experiments.controls` and
`experiments.zero_shot`: what `configs/comparison.py` shares, in rows of about 40 words.

Ours: docs/results.md, "Six controls" and "Texts in other words"; what stands here repairs planted
errors there, too.
  python -m experiments.controls --path=e2e-nlg --workdir=runs/records
Masked diffusion alone, on the bundled novels:
  python -m experiments.train --config=configs/short_texts.py --workdir=runs/short_texts
"""

from configs import comparison


def get_config(size: str = "micro"):
  c = comparison.get_config(size)
  c.train.update({"steps": 700, "batch_size": 64, "log_every": 20})
  c.train.update({"evaluate_every": 350, "save_every": 175})
  c.evaluate.update({"batch_size": 64, "max_rows": 128})
  return c
