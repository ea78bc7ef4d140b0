r"""The base of a control experiment: networks of the quickstart's size, for generator and judge.

Rows have 64 word pieces: long enough for two or three names, short enough for hundreds of samples
on a laptop CPU. 4096 pieces keep the names of Austen's people whole. Control is a part of the table
of tasks; results are in docs/results.md. The judge, which is autoregressive, and then the table:
  python -m experiments.train --config=configs/control.py --workdir=runs/judge \
      --config.timing.name=at_noise --config.context.name=next_token --config.reader.name=cached \
      --config.sampler.steps=1 --config.train.steps=800
  python -m experiments.compare --base=configs/control.py --configs=mdlm --tasks=control \
      --task_option=control.judge=runs/judge --steps=1600 --workdir=runs/control
The generator alone:
  python -m experiments.train --config=configs/control.py --workdir=runs/control_mdlm
"""

from configs import base


def get_config(size: str = "micro"):
  c = base.config(size)
  c.model.update(
    {"width": 128, "heads": 4, "kv_heads": 4, "mlp_width": 512, "qk_norm": True, "rope_base": 100.0}
  )
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
