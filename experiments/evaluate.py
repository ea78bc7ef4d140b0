"""Scores a trained model: the bound on held-out text in nats/token, perplexity and bits per character, with its standard error.

python -m experiments.evaluate --workdir=runs/mdlm [--split=test] [--num_draws=4] [--max_rows=1000]

It uses all devices of all processes (see processes.py); sampling uses one.

--variance: instead, a table of the ways to draw the same bound, with the variance of each: which gives most for its price.
python -m experiments.evaluate --workdir=runs/mdlm --variance --max_rows=256 [--num_draws=8]
"""

import dataclasses
import json

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.processes import connect

WORKDIR = workdir_flag()
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "which text")
NUM_DRAWS = flags.DEFINE_integer(
  "num_draws", None, "draws of time and noise per row, default 1, with --variance 8; more shrink the error", lower_bound=1
)
MAX_ROWS = flags.DEFINE_integer("max_rows", None, "score only the first rows; default all", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "rows at a time, over all devices; default the config's", lower_bound=1)
PARAMETERS = flags.DEFINE_enum("parameters", "float32", ["float32", "bfloat16"], "what the network's are held in")
VARIANCE = flags.DEFINE_bool("variance", False, "compare the estimators of the bound instead")
JSON = flags.DEFINE_bool("json", False, "print one JSON line instead (with --variance, one per estimator)")


def main(_):
  from diffusion_text import run as runs
  from diffusion_text.evaluate.variance import table
  from diffusion_text.train.processes import is_first

  rows = [] if BATCH_SIZE.value is None else [("evaluate.batch_size", BATCH_SIZE.value)]
  trained = runs.load(WORKDIR.value, rows, all_devices=True, dtype=PARAMETERS.value)
  show = print if is_first() else lambda text: None
  draws = NUM_DRAWS.value or (8 if VARIANCE.value else 1)
  if VARIANCE.value:
    rows = runs.variance(trained, split=SPLIT.value, num_draws=draws, max_rows=MAX_ROWS.value)
    show("\n".join(json.dumps(dataclasses.asdict(row)) for row in rows) if JSON.value else table(rows))
    return
  result = runs.score(trained.experiment, trained.params, split=SPLIT.value, num_draws=draws, max_rows=MAX_ROWS.value)
  if JSON.value:
    row = {"step": trained.step, "split": SPLIT.value, "nats_per_token": result.nats_per_token}
    row |= {"standard_error": result.standard_error, "perplexity": result.perplexity, "bits_per_char": result.bits_per_char}
    show(json.dumps(row | {"bits_per_char_error": result.bits_per_char_error, "tokens": result.tokens, "rows": result.rows}))
  else:
    show(f"step {trained.step}, {SPLIT.value}: {result}")


if __name__ == "__main__":
  run(main, connect)
