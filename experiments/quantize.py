r"""Writes a workdir with integers in place of a trained network's matrices, and prints its bound
beside that of the float network, on the same draws, and beside a control with random rounding.

  python -m experiments.quantize --workdir=runs/mdlm --output=runs/mdlm4 --bits=4 --method=gptq
  python -m experiments.evaluate --workdir=runs/mdlm4

--tables: instead, all methods and bits, calibration at one time against all, largest inputs.
--prompts: of a run on a task, the share of right answers too.

  python -m experiments.quantize --workdir=runs/mdlm --output=runs/tables \
      --tables=methods,calibration,inputs
"""

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.paths import path_flag
from experiments.settings import settings_flags

WORKDIR = workdir_flag()
OUTPUT = path_flag("output", "workdir to write, or folder of the tables", required=True)
METHODS = ["nearest", "gptq", "awq", "smoothquant"]
METHOD = flags.DEFINE_enum("method", "gptq", METHODS, "how numbers are rounded")
BITS = flags.DEFINE_enum("bits", "4", ["8", "4", "3"], "bits of each number")
GROUP = flags.DEFINE_integer("group", 64, "inputs that share a scale; 0: all", lower_bound=0)
DAMPING = flags.DEFINE_float("damping", 0.01, "of gptq: a share of the mean of H", lower_bound=0)
SETTINGS = settings_flags("quantize")
EVALUATE = flags.DEFINE_multi_string("evaluate", [], "an option of config.evaluate: decode_at=3")
TABLES = flags.DEFINE_list("tables", [], "methods, calibration, inputs: tables of several methods")


def main(_):
  from diffusion_text.experiment.registry import named_value
  from diffusion_text.studies import quantize

  chosen = quantize.Settings(**SETTINGS())
  own = [named_value(text, "evaluate") for text in EVALUATE.value]
  own = [(f"evaluate.{key}", value) for key, value in own]
  if TABLES.value:
    print(quantize.tables(WORKDIR.value, OUTPUT.value, TABLES.value, chosen, own))
    return
  how = quantize.How(METHOD.value, int(BITS.value), GROUP.value, DAMPING.value, chosen.seed)
  print(quantize.quantize(WORKDIR.value, OUTPUT.value, how, chosen, own))


if __name__ == "__main__":
  run(main)
