"""Samples from a trained model.

  python -m experiments.sample --workdir=runs/mdlm --num=8 --decoder=fast_dllm    # '?' lists all
  python -m experiments.sample --workdir=runs/mdlm --prompt="To be" --prompt="It was" --length=128
  python -m experiments.sample --workdir=runs/mdlm --infill="To be, [16] that is the question"
  python -m experiments.sample --workdir=runs/mdlm --num=10000 --output=samples.jsonl
  python -m experiments.sample --workdir=runs/mdlm --num=2 --stream --trace=film.html

In an infill text `[16]` is a hole of 16 tokens and `[[` a literal bracket; a model that writes from
left to right takes no text after a hole. The same seed gives the same text, whatever else is drawn
and on however many devices and processes. The last line says what the decoding cost.
"""

from absl import flags

from experiments import decoding
from experiments.flags import run, workdir_flag
from experiments.paths import path_flag
from experiments.processes import connect

WORKDIR = workdir_flag(required=False)
NUM = flags.DEFINE_integer("num", 4, "samples (of each prompt or infill text)", lower_bound=1)
LENGTH = flags.DEFINE_integer(
  "length", None, "tokens of a sample; default as in training", lower_bound=1
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "text that the sample begins with")
INFILL = flags.DEFINE_multi_string("infill", [], "text with holes, as in 'To be, [16] that'")
PARAMETERS = flags.DEFINE_enum(
  "parameters", "float32", ["float32", "bfloat16"], "type of the network's parameters"
)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "rows drawn at a time", lower_bound=1)
OUTPUT = path_flag("output", "file of JSON lines, a row as soon as it is drawn: text, ids, calls")
STREAM = flags.DEFINE_bool("stream", False, "print the rows of one batch after each call")
TRACE = path_flag("trace", "file for a page that plays the rows of one batch, call by call")
LENGTHS = flags.DEFINE_bool("lengths", False, "print how long texts are, here and in held-out text")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything, print the plan, compute nothing")


def main(_):
  from diffusion_text.experiment import drawing, summary
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.film import check_film, play
  from diffusion_text.experiment.second_model import abstract_beside, beside, second_model
  from diffusion_text.train.multihost import is_first, together

  decoding.list_decoders_if_asked()
  if WORKDIR.value is None:
    raise ValueError("--workdir is not set; give the workdir of the run to sample from")
  film, scorer = bool(STREAM.value or TRACE.value), decoding.SCORER.value
  # Nothing is scored here, so evaluate.batch_size only has to be a multiple of the devices.
  where = {} if film else {"overrides": drawing.rows_for_devices(), "all_devices": True}
  experiment = together(lambda: runs.load_experiment(WORKDIR.value, **where))
  second = second_model(scorer, experiment) if scorer else None
  chosen = decoding.decoding(experiment, second)
  length = LENGTH.value if INFILL.value else LENGTH.value or experiment.data.length
  texts = runs.open_rows(experiment.tokenizer, 1, length, PROMPT.value, INFILL.value)
  how = {"num": NUM.value, "seed": SEED.value, "batch_size": BATCH_SIZE.value, **chosen._asdict()}
  groups, output = abstract_beside(second), OUTPUT.value if is_first() else None
  plan = together(lambda: drawing.check(experiment, texts, output=output, beside=groups, **how))
  check_film(TRACE.value, STREAM.value, NUM.value * len(texts.ids), BATCH_SIZE.value, OUTPUT.value)
  show = print if is_first() else lambda *text, **how: None
  if DRY_RUN.value:
    return show(f"{summary.summary(experiment)}\n{plan}")
  trained = beside(runs.load(WORKDIR.value, dtype=PARAMETERS.value, **where), second)
  if film:
    shown = {"page": TRACE.value, "say": STREAM.value}
    return play(trained, texts, chosen, num=NUM.value, seed=SEED.value, **shown)
  costs = drawing.Costs()
  rows = drawing.draw(trained, texts, costs=costs, **how)
  for row in rows if output is None else drawing.write(rows, output):
    show(f"--- sample {row.row} ({row.calls} network calls)\n{row.text}", flush=True)
  show(drawing.closing(costs, experiment, lengths=LENGTHS.value))


if __name__ == "__main__":
  run(main, connect)
