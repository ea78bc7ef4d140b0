"""A masked language model that becomes a diffusion model and follows instructions
(Ye et al. 2023, arXiv 2308.12219).

The loss is that of RDM (configs/rdm.py) on answers alone: everything else of a conversation is
observed. Conversations share rows and do not see each other; the chat template is the tokenizer's.
Published: XLM-R of 86 M to 10.7 B as the start, learning rate 5e-5 for tasks and 1e-5 for 4,000
steps of FLAN; at most 10 calls, all tokens guessed at each, the surest kept by a cosine count, and
a small network that proposes 10 lengths, each decoded and ranked, which is left out. The rule of
lengths here: the last answer of a conversation is filled up with ends of text to a multiple of 32
tokens, which are learned; what stands behind its first end is no text, so that any larger multiple
will do as its room. Rules that know the length of the reference flatter. Each row is read at two
times whose masks are drawn together, as released.
Ours: see docs/results.md.
  python -m experiments.convert --from=xlm-roberta-base --workdir=runs/instruction \
      --config=configs/instruction.py:small --config.optimizer.learning_rate=5e-5 \
      --config.data.corpus=conversations --config.data.packing=conversations \
      --config.data.answer_multiple=32 --config.data.path=chats.jsonl
and from scratch, on text, which is the control:
  python -m experiments.train --config=configs/instruction.py:tiny --workdir=runs/instruction
"""

from configs import base


def get_config(size: str = "tiny"):
  c = base.config(size)
  c.objective = {"name": "coupled", "weighting": "linear", "linear_steps": 50}
  c.sampler = {"name": "routed", "steps": 10, "rate": "cosine", "temperature": 0.0}
  c.sampler.rewrites = True
  return c
