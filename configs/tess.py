"""TESS: simplex diffusion with cross-entropy, tokens drawn and noised again at each step
(Mahabadi et al. 2023, arXiv 2305.08379).

Published: RoBERTa-large, 355 M parameters; on par with autoregressive models on four tasks, no
likelihood (ours is a bound like any other, since cross-entropy is only what is trained). Half of
the rows read the mean of the noisy and the last predicted probabilities; the others read the mean
of the noisy probabilities and the uniform distribution, as in the paper. The coin is per row
(published: per device). The window of the path is that of the published chain of 5000 steps, from
its first step with noise; sampling has 1000 steps there and 100 here, for a laptop, and ends with
the likeliest token. A bound from log-SNR 15 on counts what no small network predicts well enough:
`experiments.evaluate --decoding` finds where it should begin. Missing: span infilling, and the time
shown to noisy positions alone. The state is [B, L, V], 1 GiB at 32 x 256 x 32k.
Ours: 2.967 ± 0.038 bits/char after 500 updates of the comparison at equal tokens in
docs/results.md, by the code at commit 3aad1fc; too few to judge it by. 2.145 ± 0.087 with
process.prediction="leave_one_out": the logits leave the evidence of the token itself out, and it is
added exactly.
  python -m experiments.train --config=configs/tess.py:tiny --workdir=runs/tess
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "simplex", "k": 5.0}
  c.process.schedule = {"name": "cosine", "offset": 1e-4}
  c.process.schedule.update({"log_snr_max": 15.44, "log_snr_min": -16.13})
  c.objective.name = "cross_entropy"
  c.sampler = {"name": "gaussian", "steps": 100, "projection": "sample", "rho": 1.0}
  c.sampler.update({"top_p": 0.99, "greedy_tail": True})
  base.time_conditioned(c)
  base.self_conditioned(c, 0.5, how="mean")
  c.model.absent = "uniform"
  base.own(c, "model.absent")
  return c
