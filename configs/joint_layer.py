"""ADJUST: several tokens per network call, drawn one after the other by one extra layer on a frozen
masked model (arXiv 2509.22738).

Published: Dream-7B and LLaDA with one more layer, trained on the model's own trajectories; 4 tokens
per call reach a MAUVE of 0.87 where independent ones have 0.31 (recalled, not checked). Here the
rows are those of the corpus, whose noise gives the states that the network was trained on; its own
trajectories are the noise of its own rows (`diffusion_text/contrib/joint_layer.py`), as
`experiments.joint_layer` trains it. A row of 256 takes 64 calls of 4 tokens.
The network is another run's and does not move; without `train.initialize_from` it is a random one.
Ours: `python -m experiments.joint_layer`, 4 tokens per call of a network of 4 layers, whose rows
are invalid in the chain "branchy": 0.210 ± 0.013, where independent tokens have 0.690 ± 0.014, as
many as cost the same 0.487 ± 0.016, and one token per call 0.140 ± 0.011. On "phrase", where one
token settles six places, 400 updates of the layer are too few: 0.993 ± 0.003.
  python -m experiments.train --config=configs/mdlm.py:tiny --workdir=runs/mdlm
  python -m experiments.train --config=configs/joint_layer.py:tiny --workdir=runs/joint_layer \
      --config.train.initialize_from=runs/mdlm
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "joint_layer", "tokens": 4}
  c.sampler = {"name": "joint", "steps": 64}
  c.train.frozen = ("network",)
  base.own(c, "train.frozen")
  return c
