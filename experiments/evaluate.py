r"""Scores a trained model: the bound on held-out text in nats/token, perplexity, bits per character
and per byte, with its standard error.

  python -m experiments.evaluate --workdir=runs/mdlm [--split=test] [--num_draws=4]

--path: of text elsewhere. For a run on files it is the place of the same kind of files, for one
that has moved too; --data sets any option of config.data, and names another kind of corpus.

  python -m experiments.evaluate --workdir=runs/mdlm --path=wikitext-2 --detokenizer=wikitext2
  python -m experiments.evaluate --workdir=runs/mdlm --path=a.jsonl --data=field=body --split=all

--variance: instead, a table of the ways to draw the same bound, with the variance of each.

  python -m experiments.evaluate --workdir=runs/mdlm --variance --max_rows=256 [--num_draws=8]

--decoding: of a Gaussian process, the validation bound for 16 log-SNRs at which tokens may be
decoded, and the score for the best of them. From then on it is --decode_at=….

  python -m experiments.evaluate --workdir=runs/plaid --decoding [--num_draws=4]
"""

import dataclasses
import json

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag
from experiments.processes import connect

WORKDIR = workdir_flag()
SPLITS = ["train", "validation", "test", "all"]
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "which text")
PATH = path_flag("path", "file or folder of the text; default the run's own")
DATA = flags.DEFINE_multi_string("data", [], "an option of config.data, as in field=article")
SETS = ["lm1b", "ptb", "wikitext2", "lambada", "ag_news", "pubmed", "arxiv"]
DETOKENIZER = flags.DEFINE_enum("detokenizer", None, SETS, "the set that the text is from")
NUM_DRAWS = flags.DEFINE_integer(
  "num_draws", None, "draws per row, default 1, with --variance 8", lower_bound=1
)
MAX_ROWS = flags.DEFINE_integer("max_rows", None, "only the first rows; default all", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", None, "rows at a time, over all devices; default the config's", lower_bound=1
)
PARAMETERS = flags.DEFINE_enum(
  "parameters", "float32", ["float32", "bfloat16"], "type of the network's parameters"
)
VARIANCE = flags.DEFINE_bool("variance", False, "compare the estimators of the bound instead")
DECODING = flags.DEFINE_bool("decoding", False, "first choose decode_at on 64 validation rows")
DECODE_AT = flags.DEFINE_float("decode_at", None, "log-SNR at which the bound decodes tokens")
JSON = flags.DEFINE_bool("json", False, "print JSON: one line, or one per estimator")


def main(_):
  from diffusion_text.experiment import other_text
  from diffusion_text.experiment import run as runs
  from diffusion_text.studies import bound_variance as scoring
  from diffusion_text.studies.variance import table
  from diffusion_text.train.multihost import is_first

  own = {"evaluate.batch_size": BATCH_SIZE.value, "evaluate.decode_at": DECODE_AT.value}
  own = [(key, value) for key, value in own.items() if value is not None]
  own += other_text.of_workdir(WORKDIR.value, PATH.value, DATA.value, DETOKENIZER.value)
  trained = runs.load(WORKDIR.value, own, all_devices=True, dtype=PARAMETERS.value)
  show = print if is_first() else lambda text: None
  draws = NUM_DRAWS.value or (8 if VARIANCE.value else 1)
  if DECODING.value:
    trained, tried = scoring.best_decoding(trained, num_draws=draws)
    if not JSON.value:
      show("\n".join(f"decode_at={level:.2f}: validation {bound}" for level, bound in tried))
      show(f"--decode_at={trained.experiment.evaluate.decode_at} is the best of these")
  if VARIANCE.value:
    rows = scoring.variance(trained, split=SPLIT.value, num_draws=draws, max_rows=MAX_ROWS.value)
    lines = "\n".join(json.dumps(dataclasses.asdict(row)) for row in rows)
    return show(lines if JSON.value else table(rows))
  experiment = trained.experiment
  result = runs.score(
    experiment, trained.params, split=SPLIT.value, num_draws=draws, max_rows=MAX_ROWS.value
  )
  text = experiment.data.make_corpus().origin(SPLIT.value)
  row = {"step": trained.step, "split": SPLIT.value, "text": text}
  row["decode_at"] = experiment.evaluate.decode_at
  if JSON.value:
    show(json.dumps(row | result.as_dict()))
  else:
    show(f"step {trained.step}, {SPLIT.value}: {result}\ntext: {text}")


if __name__ == "__main__":
  run(main, connect)
