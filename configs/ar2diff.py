"""AR2Diff: an autoregressive model goes on as a diffusion model that replaces random tokens
(Han et al. 2024, arXiv 2401.17181), by the loss of SUNDAE (arXiv 2112.06749).

A share t of the tokens is random; the loss is the cross-entropy of all tokens, read from the noisy
row and once more from the likeliest tokens of the first reading. Full attention, no mask, no time.
That is no bound on the likelihood and none is reported in training. Texts begin with random tokens,
and each of 10 calls draws all of them anew at temperature 0.2. Published: of 8 texts the best by
the model's own score is kept (`studies.adaptation.own_score`); 280 M to 1.7 B parameters, 1 M
steps of 128 × 1024 tokens; translation below the autoregressive model, questions and code often
above it, the more of the diffusion steps before fine-tuning (N) the better. Prefixes are observed
tokens (packing "pairs" or "conversations"); lengths are not predicted, as ends of text are
generated like other tokens. Answers stand at their own position; autoregressive weights know the
one before (context.answer_shift=1).
Ours: see docs/results.md.
  python -m experiments.convert --from=SmolLM2-135M.gguf --workdir=runs/ar2diff \
      --config=configs/ar2diff.py:small --config.context.answer_shift=1
  python -m experiments.train --config=configs/ar2diff.py:tiny --workdir=runs/ar2diff
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.process = {"name": "uniform", "prediction": "posterior"}
  c.objective = {"name": "unrolled"}
  c.sampler = {"name": "redraw", "steps": 10, "temperature": 0.2}
  return c
