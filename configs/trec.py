"""TREC: self-conditioned embedding diffusion for translation-like tasks (Liu et al. 2024, arXiv 2402.14843).

Published: translation, paraphrase and question generation. Two parts are its own: "reinforced conditioning", against self-conditioning that
degrades as training goes on, and "time-aware variance scaling", against states in sampling that training never saw. Missing: both. Their
formulas are in no source at hand, and guesses would not be TREC. What is here is what they improve on: an anchored, self-conditioned
embedding model, with a constant factor of the noise (Difformer's) where theirs depends on the time. The training step reads the network
with and without its last answer, so a reward would go there (objective/conditioning.py). Ours: not yet run.
  python -m experiments.train --config=configs/trec.py:tiny --workdir=runs/trec
"""

from configs import difformer


def get_config(size: str = "tiny"):
  return difformer.get_config(size)
