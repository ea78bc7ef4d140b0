r"""The quickstart: masked diffusion on the bundled corpus in a few minutes of a laptop CPU.

Run by launch/quickstart. Network, tokens and batches are those of a comparison
(configs/comparison.py, where the reasons for word pieces are).

Ours: 1.635 ± 0.010, 1.619 ± 0.010 and 1.622 ± 0.012 bits/char with seeds 0, 1 and 2 after 3,500
updates (test split, 8 draws), where a character 5-gram has 1.822; docs/results.md has these runs,
and what else was tried.
  python -m experiments.train --config=configs/quickstart.py --config.train.steps=3500 \
      --workdir=runs/quick
  python -m experiments.evaluate --workdir=runs/quick --num_draws=8
"""

from configs import comparison


def get_config(size: str = "micro"):
  c = comparison.get_config(size)
  c.optimizer.update(
    {"name": "muon", "schedule": "wsd", "decay_fraction": 0.3, "final_fraction": 0.0}
  )
  # More of the small times, at smaller weights: the same bound at a third of the variance that
  # times and masks give to the gradient, and fewer logits. Held-out text is scored at even times.
  c.timing.power = 2.0
  c.evaluate.timing = {"name": "shared"}
  c.model.update({"tie_embeddings": True, "chunk": 64})
  return c
