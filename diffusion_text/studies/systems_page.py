"""The page docs/systems.md: every config in one line, made of its docstring and of what it
chooses.
"""

from __future__ import annotations

import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

from diffusion_text.experiment.build import MEMBERS

CHOICES = tuple(name for name in MEMBERS if name != "model")

TOP = """# Systems

Each line is a file of `configs/`, whose docstring is its lab note: the published setting and
numbers with their source, what differs here, and what was run. The figures are in
[results.md](results.md). This page is written by `python -m experiments.systems`.
"""


def page(configs: pathlib.Path) -> str:
  """The page as markdown, for the config files in a directory."""
  paths = sorted(path for path in configs.glob("*.py") if path.stem not in ("__init__", "base"))
  header = f"| config | what it is | {' · '.join(CHOICES)} |"
  lines = [header, "|---|---|---|", *map(_line, paths)]
  return TOP + "\n" + "\n".join(lines) + "\n"


def _line(path: pathlib.Path) -> str:
  module = runpy.run_path(str(path))
  config = module["get_config"]()
  chosen = " · ".join(_name(config[section].to_dict()) for section in CHOICES)
  return f"| [{path.stem}](../configs/{path.name}) | {_title(module['__doc__'])} | {chosen} |"


def _title(docstring: str) -> str:
  """The first paragraph of a lab note in one line."""
  return " ".join(docstring.split("\n\n")[0].split()).rstrip(".").replace("|", "\\|")


def _name(section: Mapping[str, Any]) -> str:
  """The name of a choice; of a combinator, with the names of its parts:
  self_conditioned(cached).
  """
  parts = [value["name"] for key, value in section.items() if key == "reader"]
  return f"{section['name']}({', '.join(parts)})" if parts else section["name"]
