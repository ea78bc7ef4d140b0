r"""Prints JSON lines of speed and memory. Ratios are within the run; quote those.

  python -m experiments.benchmark --config=configs/mdlm.py:tiny --vocab_size=128
  python -m experiments.benchmark --config=configs/mdlm.py:tiny --config.train.batch_size=4 \
      --vocab_size=32768 --full_logits
  python -m experiments.benchmark --what=attention --lengths=256,1024
  python -m experiments.benchmark --what=cross_entropy
  python -m experiments.benchmark --what=experts --config=configs/llada_moe.py:tiny
"""

import json

from absl import flags

from experiments.flags import config_flag, run

CONFIG = config_flag("configs/mdlm.py:tiny")
KINDS = ["model", "attention", "cross_entropy", "experts"]
WHAT = flags.DEFINE_enum("what", "model", KINDS, "what to measure")
VOCAB = flags.DEFINE_integer(
  "vocab_size",
  None,
  "V; default that of the config's tokenizer (cross_entropy: 32768)",
  lower_bound=2,
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds; medians are reported", lower_bound=1)
STEPS = flags.DEFINE_integer("sample_steps", 8, "model: network calls per sample", lower_bound=1)
FULL = flags.DEFINE_bool(
  "full_logits",
  False,
  "model: also the same work with the logits of every position, for comparison",
)
LENGTHS = flags.DEFINE_list("lengths", ["256", "1024"], "attention: positions of a row")
ROWS = flags.DEFINE_integer("rows", 4, "attention: rows of the batch", lower_bound=1)
HEADS = flags.DEFINE_integer("heads", 4, "attention: heads", lower_bound=1)
WIDTH = flags.DEFINE_integer("head_width", 64, "attention: width of a head", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "attention: of q, k and v")


def main(_):
  import jax

  from diffusion_text.experiment.build import build
  from diffusion_text.experiment.summary import AnyVocabulary
  from diffusion_text.kernels.attention import IMPLEMENTATIONS
  from diffusion_text.studies import benchmark as bench
  from diffusion_text.studies import benchmark_experts as bench_experts
  from diffusion_text.studies import benchmark_kernels as bench_kernels

  if WHAT.value == "model":
    experiment = build(CONFIG.value, tokenizer=AnyVocabulary(VOCAB.value) if VOCAB.value else None)
    with jax.set_mesh(experiment.mesh):
      lines = [
        bench.measure(
          experiment, rounds=ROUNDS.value, sample_steps=STEPS.value, full_logits=FULL.value
        )
      ]
  elif WHAT.value == "attention":
    sizes = {
      "rows": ROWS.value,
      "heads": HEADS.value,
      "head_width": WIDTH.value,
      "dtype": DTYPE.value,
    }
    lengths = [int(length) for length in LENGTHS.value]
    lines = bench_kernels.measure_attention(
      lengths, **sizes, implementations=tuple(IMPLEMENTATIONS), rounds=ROUNDS.value
    )
  elif WHAT.value == "experts":
    lines = bench_experts.measure_config(CONFIG.value, rounds=ROUNDS.value)
  else:
    lines = bench_kernels.measure_cross_entropy(
      rows=4096, width=256, vocab_size=VOCAB.value or 32768, rounds=ROUNDS.value
    )
  for line in lines:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  run(main)
