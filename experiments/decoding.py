"""Flags that say how a trained model is decoded, and what they stand for."""

import sys

from absl import flags

from experiments.paths import path_flag

DECODER = flags.DEFINE_string("decoder", None, "a published decoder by name; '?' lists them")
STEPS = flags.DEFINE_integer("steps", None, "of the grid or the budget", lower_bound=1)
BLOCK = flags.DEFINE_integer(
  "block", None, "tokens that are sampled together, left to right; 0: the whole row", lower_bound=0
)
ORDERS = ["random", "left_to_right", "entropy", "margin", "max_prob"]
ORDER = flags.DEFINE_enum("order", None, ORDERS, "which tokens are revealed first (sampler reveal)")
EVENTS = flags.DEFINE_bool(
  "event_driven", False, "a grid without the calls at which a row would not change: the same text"
)
SAMPLER = flags.DEFINE_multi_string("sampler", [], "an option of config.sampler, as in eta=0.02")
READER = flags.DEFINE_multi_string("reader", [], "an option of config.reader, as in scale=2.0")
TEMPERATURE = flags.DEFINE_float("temperature", None, "1 is the model's own law, 0 is greedy")
TOP_P = flags.DEFINE_float("top_p", None, "keep the likeliest tokens that make up this probability")
STOP = flags.DEFINE_bool(
  "stop_at_end", False, "end a row at its first end of text (docs/length_and_end.md)"
)
SCORER = path_flag("scorer", "workdir of a second model, for decoders that have one")


def list_decoders_if_asked() -> None:
  """Prints the decoders and leaves, for --decoder=?."""
  from diffusion_text.experiment.decoding import listed

  if DECODER.value == "?":
    print(listed())
    sys.exit(0)


def decoding(experiment, second):
  """The decoding of the flags; second: the model of --scorer, or None."""
  from diffusion_text.experiment.decoding import decoding_of

  return decoding_of(
    experiment,
    decoder=DECODER.value,
    sampler=SAMPLER.value,
    reader=READER.value,
    block=BLOCK.value,
    scorer=None if second is None else second.reader,
    stop_at_end=STOP.value,
    steps=STEPS.value,
    order=ORDER.value,
    skip=EVENTS.value,
    temperature=TEMPERATURE.value,
    top_p=TOP_P.value,
  )
