"""Published larger settings: the data, sizes and lengths of a table, for any of the systems in
configs/. None of them has been run here yet; each file lists the numbers that are published.

A setting sets what the table holds equal and leaves the system its own sections:

  python -m experiments.train --config=configs/published/text8.py:md4 --workdir=runs/text8

Numbers are to be set beside ours only where data, tokenizer, packing and steps are the same.
`experiments.inspect --topology` says what a setting costs before it is run.
"""

import importlib
from typing import Any

from ml_collections import ConfigDict

SYSTEMS = "configs"  # the package of the systems


def of(system: str, settings: dict[str, Any], size: str = "small") -> ConfigDict:
  """The config of a system at a size, with the sections of a setting written over it.

  Raises:
    ValueError: For a system without a file in configs/.
  """
  try:
    module = importlib.import_module(f"{SYSTEMS}.{system}")
    config = module.get_config(size)
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f"configs/{system}.py gives no system; name one of configs/, as in"
      " configs/published/text8.py:mdlm"
    ) from error
  for section, values in settings.items():
    config[section].update(values)
  return config


def protocol(choice: str, known: dict[str, Any], default: str) -> tuple[str, Any]:
  """(system, what a protocol sets) of a choice such as "mdlm/wrapped".

  Raises:
    ValueError: For an unknown protocol.
  """
  system, _, name = choice.partition("/")
  name = name or default
  if name not in known:
    raise ValueError(f"{choice!r} names no protocol; use {system}/ and one of {', '.join(known)}")
  return system, known[name]
