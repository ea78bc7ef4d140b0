"""Diffusion Forcing: every token has a time of its own, and a causal network writes along a slope
(Chen et al. 2024, arXiv 2407.01392), here with masks.

Published for video and control, not for text, and with Gaussian noise: process.name="embedding"
with objective.name="mse_rounding" and sampler.name="gaussian" is that for text. The sampler walks
the published pyramid: timing.width=64 in 128 steps are about 26 levels and 0.4 of a level per
position, where 50 to 100 levels are published. As the network is causal and the slope does not
depend on the length of a row, --length may exceed the length of training (with --steps in
proportion); the network then reads places that it was not trained on, all of them at every step.
Missing: the small noise that published rollouts keep on tokens that are done, their weights of the
loss, and guidance.
Ours: 2.177 ± 0.037 bits/char after 200 updates of the table at equal tokens in
docs/results.md, where a character 5-gram has 1.822.
  python -m experiments.train --config=configs/diffusion_forcing.py --workdir=runs/diffusion_forcing
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing = {"name": "independent", "width": 64}
  c.context.name = "causal"
  c.sampler.steps = 128
  base.time_conditioned(c)
  return c
