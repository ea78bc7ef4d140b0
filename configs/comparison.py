"""The base of a comparison: what all systems share in experiments.compare.

Network, data, batches, optimizer and rates of a few minutes on a laptop CPU. The tokens are word
pieces rather than characters. In an exploratory sweep by code before commit 3aad1fc (one run each,
76 to 149 s on 2 shared cores, test split, seed 0; batch size and learning rate were not held equal
and the script is not kept) 8192 pieces reached 2.07 bits/char, 4096 pieces 2.25, 1024 pieces 2.98
and characters 3.88. Query/key norm, 4 heads and rope base 100 were chosen together in the same
sweep (2.26 against 2.30 without them, about 330 steps). Treat these figures as reasons for the
choice, not as results. AdamW with a cosine, since one rate then serves all systems alike; the
quickstart (configs/quickstart.py) begins here and learns faster.
  python -m experiments.compare --configs=mdlm,md4 --steps=200 --workdir=runs/compare
Masked diffusion alone, on these terms:
  python -m experiments.train --config=configs/comparison.py --workdir=runs/comparison
"""

from configs import base


def get_config(size: str = "micro"):
  c = base.config(size)
  c.model.update(
    {"width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 512, "qk_norm": True, "rope_base": 100.0}
  )
  c.data.tokenizer = "sentencepiece"
  c.data.vocab_size = 8192
  c.data.length = 128
  c.optimizer.learning_rate = 6e-3
  c.train.batch_size = 8
  c.train.save_every = 200
  c.train.evaluate_every = 400
  c.train.ema_decay = 0.995
  c.train.log_every = 10
  c.evaluate.max_rows = 64
  return c
