"""Samples from a trained model.

  python -m experiments.sample --workdir=runs/mdlm --num=8 --steps=64 --order=entropy
  python -m experiments.sample --workdir=runs/mdlm --sampler=name=remasking --sampler=eta=0.02
  python -m experiments.sample --workdir=runs/mdlm --prompt="To be" --prompt="It was" --length=128
  python -m experiments.sample --workdir=runs/mdlm --infill="To be, [16] that is the question"

In an infill text `[16]` is a hole of 16 tokens and `[[` a literal bracket. The same seed gives the same text, whatever else is in
the batch.
"""

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
NUM = flags.DEFINE_integer("num", 4, "samples (of each prompt or infill text)", lower_bound=1)
STEPS = flags.DEFINE_integer(
  "steps", None, "of the time grid, or calls of an order; default from the config", lower_bound=1
)
LENGTH = flags.DEFINE_integer(
  "length", None, "tokens of a sample, prompt included; default the training length", lower_bound=1
)
PROMPT = flags.DEFINE_multi_string(
  "prompt", [], "text that the sample begins with; may be repeated"
)
INFILL = flags.DEFINE_multi_string(
  "infill", [], "text with holes, as in 'To be, [16] that'; may be repeated"
)
ORDERS = ["random", "entropy", "margin", "max_prob"]
ORDER = flags.DEFINE_enum(
  "order", None, ORDERS, "random: ancestral steps; else most confident positions first"
)
EVENTS = flags.DEFINE_bool(
  "event_driven", False, "random order without the calls at which a row would not change (same law)"
)
SAMPLER = flags.DEFINE_multi_string(
  "sampler", [], "a key of config.sampler and its value, as in eta=0.02; may be repeated"
)
TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "1 samples the model's own distribution, 0 is greedy"
)
TOP_P = flags.DEFINE_float("top_p", None, "keep the likeliest tokens that make up this probability")
PARAMETERS = flags.DEFINE_enum(
  "parameters", "float32", ["float32", "bfloat16"], "what the network's are held in"
)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "check everything, print the plan, compute nothing")


def overrides():
  """Flags that were given, as config keys; those of --sampler come last."""
  from diffusion_text.experiment.registry import named_value

  if ORDER.value in ORDERS[1:] and EVENTS.value:
    raise ValueError(
      f"--event_driven reveals at random times and --order={ORDER.value} does not; choose one"
    )
  chosen = {
    "sampler.steps": STEPS.value,
    "sampler.temperature": TEMPERATURE.value,
    "sampler.top_p": TOP_P.value,
  }
  if ORDER.value is not None or EVENTS.value:
    ordered = ORDER.value in ORDERS[1:]
    chosen["sampler.name"] = (
      "ordered" if ordered else "event_driven" if EVENTS.value else "ancestral"
    )
    chosen["sampler.order"] = ORDER.value if ordered else None
  kept = [
    (key, value) for key, value in chosen.items() if value is not None or key == "sampler.order"
  ]
  return kept + [named_value(text, "sampler") for text in SAMPLER.value]


def main(_):
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment import summary as plan

  experiment = runs.load_experiment(WORKDIR.value, overrides())
  length = LENGTH.value if INFILL.value else LENGTH.value or experiment.data.length
  batch = runs.open_rows(experiment.tokenizer, NUM.value, length, PROMPT.value, INFILL.value)
  if DRY_RUN.value:
    print(plan.summary(experiment))
    print(
      f"would draw   {batch.ids.shape[0]} rows of {batch.ids.shape[1]} tokens, {int((~batch.given).sum())} of them open"
    )
    return
  trained = runs.load(WORKDIR.value, overrides(), dtype=PARAMETERS.value)
  texts, result = runs.generate(trained, batch, num=NUM.value, seed=SEED.value)
  for number, text in enumerate(texts):
    print(f"--- sample {number} ({int(result.row_calls[number])} network calls)\n{text}")


if __name__ == "__main__":
  run(main)
