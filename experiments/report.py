"""Writes one page about a run, or about several side by side: report.html.

  python -m experiments.report --workdir=runs/mdlm
  python -m experiments.report --workdir=runs/mdlm --decoder=entropy_bound --decoder=remdm_cap
  python -m experiments.report --workdir=runs/mdlm --workdir=runs/md4 --output=both.html

The page shows what was run, the learning curves, the bound on held-out text, and films of samples
with their costs: by the config's own decoding and by each --decoder (experiments.sample
--decoder='?' lists them). It is one file that needs no network.
"""

import os

from absl import flags

from experiments.flags import run
from experiments.paths import path_flag

WORKDIRS = flags.DEFINE_multi_string("workdir", [], "of a run; repeated: side by side")
OUTPUT = path_flag("output", "the page; default report.html in the first workdir")
DECODERS = flags.DEFINE_multi_string("decoder", [], "a film by this decoder too")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "what is scored")
MAX_ROWS = flags.DEFINE_integer("max_rows", 256, "rows scored; 0: none", lower_bound=0)
NUM = flags.DEFINE_integer("num", 2, "rows of each film", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)


def main(_):
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.decoding import decoding_of
  from diffusion_text.studies import run_report
  from diffusion_text.studies.measures import names

  if not WORKDIRS.value:
    raise ValueError("--workdir is not set; give the workdir of a run, or several")
  workdirs = [os.path.expanduser(workdir) for workdir in WORKDIRS.value]
  output = OUTPUT.value or os.path.join(workdirs[0], "report.html")
  run_report.check_output(output)
  chosen = {}
  for workdir in workdirs:  # every mistake before anything is computed
    experiment = runs.load_experiment(workdir)
    each = [decoding_of(experiment, decoder=name) for name in (None, *DECODERS.value)]
    chosen[workdir] = dict(zip(["its own decoding", *DECODERS.value], each))
  how = {"split": SPLIT.value, "max_rows": MAX_ROWS.value, "num": NUM.value, "seed": SEED.value}
  pages = []
  for name, (workdir, decodings) in zip(names([*chosen]), chosen.items()):
    pages.append(run_report.read(workdir, runs.load(workdir), decodings, name=name, **how))
  run_report.write(pages, SPLIT.value, output)
  print(f"report: {output}")


if __name__ == "__main__":
  run(main)
