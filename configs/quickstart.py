"""The quickstart: masked diffusion on the bundled corpus in a few minutes of a laptop CPU.

Run by launch/quickstart. Network, tokens and batches are those of a comparison
(configs/comparison.py, where the reasons for word pieces are).
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
