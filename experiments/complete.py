"""Prints a script that lets bash complete commands, flags, configs, decoders and config keys.

  source <(python -m experiments.complete)      # this shell
  python -m experiments.complete >> ~/.bashrc   # all later ones

The script answers for `python` and `python3`, where `-m experiments` is on the line; all else is
completed as files are. It knows what was there when it was printed.
"""

import pathlib
import runpy

from experiments.flags import run


def main(_):
  from diffusion_text.experiment import catalogue, completion

  sizes = runpy.run_path("configs/base.py")["SIZES"]
  files = sorted(pathlib.Path("configs").glob("[!_]*.py"))
  configs = [f"{file}:{size}" for file in files if file.stem != "base" for size in sizes]
  here = pathlib.Path(__file__).parent
  commands = {name: catalogue.flags(here, name) for name in catalogue.commands(here)}
  print(completion.script(commands, configs), end="")


if __name__ == "__main__":
  run(main)
