"""Published larger settings: the data, row length, batch size and steps that a published table of
systems holds equal, for any system in configs/. No setting has been run here yet; each file lists
the published numbers.

A setting writes its own options over the config of a system, and leaves everything else, such as
the noise and the sampler, as the system has it:

  python -m experiments.train --config=configs/published/text8.py:md4 --workdir=runs/text8

A published number may be compared with ours only where data, tokenizer, packing and steps are the
same. `experiments.inspect --topology` says what a setting costs before it is run.
"""

import importlib
import pathlib
from typing import Any

from ml_collections import ConfigDict

FOLDER = pathlib.Path(__file__).parents[1]  # of the systems


def of(system: str, settings: dict[str, Any]) -> ConfigDict:
  """The config of a system at size "small" (12 layers of width 768), with a setting written over.

  settings: section -> the options of that section that the setting sets.

  Raises:
    ValueError: For a system without a file in configs/.
  """
  if system not in {path.stem for path in FOLDER.glob("[!_]*.py")} - {"base"}:
    raise ValueError(
      f"configs/{system}.py is no system; name one of the systems of configs/, as in"
      " --config=configs/published/text8.py:mdlm"
    )
  config = importlib.import_module(f"configs.{system}").get_config("small")
  for section, values in settings.items():
    config[section].update(values)
  return config


def protocol(choice: str, known: dict[str, Any], default: str) -> tuple[str, Any]:
  """(name of the system, value in `known` of the protocol) for a choice such as "mdlm/wrapped";
  a choice without a protocol, such as "mdlm", has the default one.

  Raises:
    ValueError: For an unknown protocol.
  """
  system, _, name = choice.partition("/")
  name = name or default
  if name not in known:
    raise ValueError(f"{choice!r} names no protocol; use {system}/ and one of {', '.join(known)}")
  return system, known[name]
