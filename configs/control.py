"""The base of a control experiment: networks of the quickstart's size, for generator and judge.

Run by experiments.control. Rows have 64 word pieces: long enough for two or three names, short
enough for hundreds of samples on a laptop CPU. 4096 pieces keep the names of Austen's people whole.
Ours, by the code at commit 3aad1fc: 64 rows at seed 0 on a shared CPU, target emma, 32 network
calls, judge at step 800. Unguided, the evaluator finds 33 ± 6 % of the rows to be from Emma, at
7.46 ± 0.05 nats/token; at strength 2 it finds 84 ± 5 %, at 7.52 ± 0.05 (+1 %); held-out text of
Emma itself has 81 %, at 4.60. So control adds little to what such a small generator costs already.
The training of the generator was begun for 3000 steps, stopped at 1002 and ended at 1600; that of
the judge likewise (1600, 342, 800). The learning rates of a fresh run therefore differ.
  python -m experiments.control --workdir=runs/control --strengths=2
The generator alone, as that command makes it:
  python -m experiments.train --config=configs/control.py --workdir=runs/control/mdlm
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
