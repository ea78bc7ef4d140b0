"""The quickstart: masked diffusion on the bundled corpus in a few minutes of a laptop CPU. Run by launch/quickstart.

Word pieces rather than characters: in so little time a model of pieces gets further in bits per *character* than one of characters.
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.data.tokenizer = "sentencepiece"
  c.data.vocab_size = 4096
  c.data.length = 128
  c.train.batch_size = 16
  c.train.save_every = 100
  c.train.evaluate_every = 200
  c.train.ema_decay = 0.995
  c.train.log_every = 5
  c.evaluate.max_rows = 64
  return c
