"""The base of a control experiment: networks of the quickstart's size, shared by generator and judge. Run by experiments.control.

Rows of 64 word pieces: long enough for two or three names, short enough for hundreds of samples on a laptop CPU. 4096 pieces keep the
names of Austen's people whole. Ours: not yet run as a whole.
  python -m experiments.control --workdir=runs/control
  python -m experiments.train --config=configs/control.py --workdir=runs/control/mdlm     # the generator alone, as that command makes it
"""

from configs import base


def get_config(size: str = "micro"):
  c = base.config(size)
  c.model.update({"width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 512, "qk_norm": True, "rope_base": 100.0})
  c.data.tokenizer = "sentencepiece"
  c.data.vocab_size = 4096
  c.data.length = 64
  c.optimizer.learning_rate = 6e-3
  c.train.steps = 1600
  c.train.batch_size = 16
  c.train.save_every = 250
  c.train.evaluate_every = 800
  c.train.ema_decay = 0.995
  c.evaluate.max_rows = 64
  c.sampler.steps = 32
  return c
