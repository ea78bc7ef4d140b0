"""NeoDiff: each token has an intrinsic time of its own, drawn about the time of the sentence
(Li et al. 2025, arXiv 2505.22165).

Published: IWSLT14 De-En on top of Difformer (rows of length sqrt(d), MSE and cross-entropy of the
prediction, smoothed labels, noise factor 6.5); 100 intrinsic times by a Poisson law; a layer that
predicts the times, in the order of the tokens' losses, from the prediction and the next clock; 10
to 20 steps that add fresh noise to the prediction at the predicted times. The times train a
surrogate; our bound is that of shared times (see `diffusion_text.timing.Poisson`).
The published vectors have 128 numbers. With 16 numbers the factor is 2.3, which leaves as much of a
token visible (SNR times width); at 6.5 even the clearest view would hide it. The anchor loss is
that of p itself, from which tokens are drawn in the end; the published one is that of the inner
products of x̂, whose argmax ends the published sampling (here it is the argmax of p). Missing: step
times by Bayesian optimisation of BLEU on validation text (their script finds them for each trained
model, and no values are released), the length predictor and its beam.
Ours: 2.830 ± 0.098 bits/char after 500 updates of the comparison at equal tokens in
docs/results.md, by the code at commit 3aad1fc; too few to judge it by. Without the factor, the
smoothing and the predictor (now objective "mse_rounding" and sampler "gaussian", with timing
"poisson") 2.548 ± 0.041.
  python -m experiments.train --config=configs/neodiff.py:tiny --workdir=runs/neodiff
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  width = 16 if size in ("", "micro", "tiny") else 128
  path = {"name": "sqrt", "log_snr_max": 4.209, "log_snr_min": -15.41}
  c.process = {"name": "embedding", "width": width, "norm": "sqrt_d", "schedule": path}
  factor = 6.5 * (width / 128) ** 0.5
  c.process.training_schedule = {"name": "noisier", "factor": factor, "base": path}
  c.timing.name = "poisson"
  c.objective = {"name": "predicted_times", "anchor_weight": 1.0, "rounding_weight": 0.0}
  c.objective.label_smoothing = 0.1
  c.sampler = {"name": "predicted_times", "steps": 20, "greedy_tail": True}
  base.time_conditioned(c)
  base.self_conditioned(c, 0.5)
  return c
