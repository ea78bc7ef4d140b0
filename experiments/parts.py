"""Options of parts on a command line, as in --config.process.schedule.name=cosine: ml_collections
sets options of sections that are there, and a part of a choice need not be.
"""

import sys

from absl import flags

ARGV = tuple(sys.argv)  # what was typed; `take` takes some out of sys.argv
PARTS: dict[str, list[str]] = {}  # flag -> texts such as "process.schedule.name=cosine"


def take(name: str) -> None:
  """Moves the options of parts that belong to the flag `name` from sys.argv to PARTS."""

  def is_part(word):
    key, given, _ = word.partition("=")
    return bool(given) and word.startswith(f"--{name}.") and key.count(".") > 2

  PARTS[name] = [word.removeprefix(f"--{name}.") for word in sys.argv if is_part(word)]
  sys.argv[:] = [word for word in sys.argv if not is_part(word)]


def set_all() -> None:
  """Sets them in the configs that the flags have made."""
  from diffusion_text.experiment.registry import named_value
  from diffusion_text.experiment.run import override

  for name, texts in PARTS.items():
    if texts:
      override(flags.FLAGS[name].value, [named_value(text, name) for text in texts])
