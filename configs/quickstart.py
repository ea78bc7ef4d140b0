"""The quickstart: masked diffusion on the bundled corpus in a few minutes of a laptop CPU.

Run by launch/quickstart. Network, tokens and batches are those of a comparison
(configs/comparison.py, where the reasons for word pieces are).

Ours: 3,500 updates, as many as fitted into the training time of the earlier AdamW quickstart, at
0.93 of its processor time per update; seed 0, 2 shared cores (so that the 621 s that it took mean
nothing), test split: 1.635 ± 0.010 bits/char with 8 draws, 1.681 ± 0.048 with 2; the
earlier quickstart had 1.809 ± 0.018 with 2 draws.

What each choice brought, 500 updates each (seed 0, one run, 3 draws, the same for all; differences
of 0.01 may be chance): Muon and wsd 1.988; and small times 1.979; and a tied table 1.938. Not
taken: pieces that cross words 2.024 in place of 1.979; 780 updates of 4 rows 2.015 (1.979); rates
of 0.03 and 0.01 1.937 (1.938); 375 updates of 12 rows 1.911 and 290 of 16 rows 1.967 (1.938); a
bias on the logits of the tied table 1.928 (1.938), which a whole run has not tried yet.
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
