"""Samples from a trained model.

  python -m experiments.sample --workdir=runs/mdlm --num=8 --steps=64 --order=entropy
  python -m experiments.sample --workdir=runs/mdlm --sampler=name=remasking --sampler=eta=0.02
  python -m experiments.sample --workdir=runs/mdlm --prompt="To be" --prompt="It was" --length=128
  python -m experiments.sample --workdir=runs/mdlm --infill="To be, [16] that is the question"
  python -m experiments.sample --workdir=runs/mdlm --num=10000 --output=samples.jsonl

In an infill text `[16]` is a hole of 16 tokens and `[[` a literal bracket. Models that write from
left to right (context next_token, causal, blocks) refuse text that a hole before it cannot see.
The same seed gives the
same text, whatever else is in the batch and however many rows are drawn at a time.
"""

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag

WORKDIR = workdir_flag()
NUM = flags.DEFINE_integer("num", 4, "samples (of each prompt or infill text)", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "of the grid or the budget", lower_bound=1)
LENGTH = flags.DEFINE_integer(
  "length", None, "tokens of a sample, prompt included; default the training length", lower_bound=1
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "text that the sample begins with")
INFILL = flags.DEFINE_multi_string("infill", [], "text with holes, as in 'To be, [16] that'")
ORDERS = ["random", "left_to_right", "entropy", "margin", "max_prob"]
ORDER = flags.DEFINE_enum("order", None, ORDERS, "which tokens are revealed first (sampler reveal)")
EVENTS = flags.DEFINE_bool(
  "event_driven", False, "a grid without the calls at which a row would not change: the same text"
)
SAMPLER = flags.DEFINE_multi_string("sampler", [], "an option of config.sampler, as in eta=0.02")
READER = flags.DEFINE_multi_string("reader", [], "an option of config.reader, as in scale=2.0")
TEMPERATURE = flags.DEFINE_float("temperature", None, "1 is the model's own law, 0 is greedy")
TOP_P = flags.DEFINE_float("top_p", None, "keep the likeliest tokens that make up this probability")
PARAMETERS = flags.DEFINE_enum(
  "parameters", "float32", ["float32", "bfloat16"], "what the network's are held in"
)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "rows drawn at a time", lower_bound=1)
OUTPUT = path_flag("output", "file of JSON lines, a row as soon as it is drawn: text, ids, calls")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything, print the plan, compute nothing")


def main(_):
  from diffusion_text.experiment import drawing, summary
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.decoding import reader_of, sampler_of

  experiment = runs.load_experiment(WORKDIR.value)
  sampler = sampler_of(
    experiment,
    SAMPLER.value,
    steps=STEPS.value,
    order=ORDER.value,
    skip=EVENTS.value,
    temperature=TEMPERATURE.value,
    top_p=TOP_P.value,
  )
  reader = reader_of(experiment, READER.value)
  length = LENGTH.value if INFILL.value else LENGTH.value or experiment.data.length
  texts = runs.open_rows(experiment.tokenizer, 1, length, PROMPT.value, INFILL.value)
  how = {"num": NUM.value, "seed": SEED.value, "batch_size": BATCH_SIZE.value}
  how |= {"sampler": sampler, "reader": reader}
  plan = drawing.check(experiment, texts, output=OUTPUT.value, **how)
  if DRY_RUN.value:
    print(f"{summary.summary(experiment)}\n{plan}")
    return
  trained = runs.load(WORKDIR.value, dtype=PARAMETERS.value)
  rows = drawing.draw(trained, texts, **how)
  for row in rows if OUTPUT.value is None else drawing.write(rows, OUTPUT.value):
    print(f"--- sample {row.row} ({row.calls} network calls)\n{row.text}", flush=True)


if __name__ == "__main__":
  run(main)
