"""Writes docs/systems.md, one line per config, from the docstrings and choices of the configs.

python -m experiments.systems [--output=docs/systems.md]
"""

import pathlib

from absl import flags

from experiments.flags import run

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTPUT = flags.DEFINE_string("output", str(ROOT / "docs" / "systems.md"), "the file to write")


def main(_):
  from diffusion_text.studies.systems_page import page

  pathlib.Path(OUTPUT.value).write_text(page(ROOT / "configs"))
  print(f"wrote {OUTPUT.value}")


if __name__ == "__main__":
  run(main)
