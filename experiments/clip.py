"""Finds the block times that train with the least variance: BD3-LM's search (arXiv 2503.09573,
section 5.3) on a trained model.

  python -m experiments.clip --workdir=runs/bd3lm [--max_rows=128] [--num_draws=4]

For each interval [low, high] it prints the variance of a block's loss over noise and text. Give the
winner to training as --config.timing.low=… --config.timing.high=…; the bound is scored on [0, 1]
all the same.
"""

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag

WORKDIR = workdir_flag()
PATH = path_flag("path", "where the run's text is now, if it has moved")
MAX_ROWS = flags.DEFINE_integer("max_rows", 128, "validation rows", lower_bound=1)
NUM_DRAWS = flags.DEFINE_integer("num_draws", 4, "draws of time and noise per row", lower_bound=1)
WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


def intervals(delta: float = 0.1):
  """[0, 1], then intervals of each width at steps of `delta`."""
  yield 0.0, 1.0
  for width in WIDTHS:
    low = 0.0
    while low + width <= 1 + 1e-9:
      yield round(low, 2), round(low + width, 2)
      low += delta


def main(_):
  from diffusion_text.experiment import run as runs
  from diffusion_text.studies import bound_variance as scoring

  trained = runs.load(WORKDIR.value, {"data.path": PATH.value}.items() if PATH.value else ())
  model = trained.experiment.model
  if model.context.unit in (None, 1):
    raise ValueError(
      f"{WORKDIR.value} has context {model.context}; the search is for context.name=blocks with"
      " blocks of several tokens"
    )
  rows = []
  for low, high in intervals():
    variance = scoring.block_variance(
      trained, low, high, num_draws=NUM_DRAWS.value, max_rows=MAX_ROWS.value
    )
    rows.append((variance, low, high))
    print(f"low={low:.2f} high={high:.2f}  variance {variance:.4f} nats² per block", flush=True)
  variance, low, high = min(rows)
  print(
    f"least: --config.timing.low={low} --config.timing.high={high} ({variance / rows[0][0]:.2f} of"
    f" the variance on [0, 1])"
  )


if __name__ == "__main__":
  run(main)
