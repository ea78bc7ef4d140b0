"""Prints one JSON line: training and sampling speed of a config, compile time, memory, hardware. Ratios are within the run; quote those.

python -m experiments.benchmark --config=configs/mdlm.py:tiny --config.train.batch_size=16 --vocab_size=128
python -m experiments.benchmark --config=configs/mdlm.py:tiny --config.train.batch_size=4 --vocab_size=32768 --full_logits
"""

import dataclasses
import json

from absl import flags

from experiments.flags import config_flag, run

CONFIG = config_flag("configs/mdlm.py:tiny")
VOCAB = flags.DEFINE_integer("vocab_size", None, "V; default that of the config's tokenizer", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 7, "timed rounds; medians are reported", lower_bound=1)
STEPS = flags.DEFINE_integer("sample_steps", 8, "network calls per sample", lower_bound=1)
FULL = flags.DEFINE_bool("full_logits", False, "also run the same work with the logits of every position, for comparison")


@dataclasses.dataclass(frozen=True)
class AnyVocabulary:
  """Stands in for a tokenizer where tokens are drawn at random."""

  vocab_size: int
  name: str = "random"


def main(_):
  import jax

  from diffusion_text.bench import measure
  from diffusion_text.build import build

  experiment = build(CONFIG.value, tokenizer=AnyVocabulary(VOCAB.value) if VOCAB.value else None)
  with jax.set_mesh(experiment.mesh):
    print(json.dumps(measure(experiment, rounds=ROUNDS.value, sample_steps=STEPS.value, full_logits=FULL.value)))


if __name__ == "__main__":
  run(main)
