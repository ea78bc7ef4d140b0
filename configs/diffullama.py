"""DiffuGPT and DiffuLLaMA: masked diffusion that begins with autoregressive weights
(Gong et al. 2024, arXiv 2410.17891).

Token i is answered at the position before it, as the weights have learned; a token of noise before
the row answers for the first one. Causal attention becomes bidirectional in the course of training.
Published: for each pair of positions a coin, over 10,000 steps (DiffuGPT; DiffuLLaMA begins with
bidirectional rows, context.steps=1); here a coin per row, over half of the run. Cross-entropy is
weighted by 1/t, t uniform on [0.001, 1], and divided by the number of masked tokens, as released;
the network reads no time. Published: GPT-2 of 127 M and 355 M with 30 B tokens, LLaMA-2 7B with
65 B (recalled); accuracies, no likelihood.
Ours, after 20,480 tokens: 6.050 ± 0.135 nats/token from SmolLM2-135M, 7.332 ± 0.115 from scratch,
in docs/results.md. From weights (learning rates of 1e-5 to 3e-4 suit them):
  python -m experiments.convert --from=SmolLM2-135M.gguf --workdir=runs/adapted \
      --config=configs/diffullama.py:small --config.optimizer.learning_rate=1e-4
and from scratch, which is the control:
  python -m experiments.train --config=configs/diffullama.py:tiny --workdir=runs/diffullama
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.timing.low = 1e-3
  c.context = {"name": "annealed", "answer_shift": 1}
  c.objective = {"name": "masked_mean", "weighting": "inverse_time"}
  c.evaluate.timing = {"name": "exact_count"}  # the same bound at lower variance
  base.own(c, "evaluate.timing")
  return c
