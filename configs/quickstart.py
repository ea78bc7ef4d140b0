"""The quickstart: masked diffusion on the bundled corpus in a few minutes of a laptop CPU. Run by launch/quickstart.

Word pieces rather than characters: after the same 70 to 150 s on 2 busy cores (test split, seed 0) 8192 pieces had reached 2.07 bits/char,
4096 pieces 2.25, 1024 pieces 2.98 and characters 3.88. Query/key norm and a short rotary base get a small network off the
unigram plateau sooner (2.26 against 2.30 at 4096 pieces and about 330 steps). The run itself is in the README.
"""

from configs import base


def get_config(size: str = "micro"):
  c = base.config(size)
  c.model.update({"width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 512, "qk_norm": True, "rope_base": 100.0})
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
