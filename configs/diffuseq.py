"""DiffuSeq: sequence to sequence by partial noising, source ‖ target in one row (Gong et al. 2022, arXiv 2210.08933).

Published: QQP, BLEU 0.2413 by consensus of 10 samples (users report less without it), 2000 steps, rows of 128 tokens, 91 M parameters.
Here as there: the source is at t = 0 and never altered, padding of the target is scored, so that the model learns where to stop, and the
table is learned with the loss. Different: the source is not noised by sigma_0 in training, and is not scored; the network answers with a
distribution over tokens, whose mean is x0; the sampler is the DDPM posterior, not "fixed large", at the times of any grid; no `lossaware`
times.
Pairs: --config.data.corpus=pairs --config.data.packing=pairs --config.data.path=…; without them it is Diffusion-LM on plain text.
Ours: 3.777 ± 0.060 nats/target token and BLEU 1.17 on Tatoeba after 1000 updates of launch/translation
(see README), too few to judge it by.
  python -m experiments.train --config=configs/diffuseq.py:tiny --workdir=runs/diffuseq
"""

from configs import diffusion_lm


def get_config(size: str = "tiny"):
  return diffusion_lm.get_config(size)
