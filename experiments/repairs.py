r"""Plants wrong tokens in right rows of a chain and counts what each sampler repairs and damages
when it goes on from there, with a network that knows the chain.

  python -m experiments.repairs --workdir=runs/repairs
  python -m experiments.repairs --workdir=runs/repairs --chain=branchy --time=0.2

With --workdirs the networks are those of trained runs and the rows are their held-out text; it is
said, too, whether a network sees the errors, and what is repaired by place and by its chances:

  python -m experiments.repairs --workdirs=runs/mdlm,runs/udlm --workdir=runs/repairs --errors=1,4
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag
from experiments.settings import settings_flags
from experiments.workdirs import workdirs_flag

WORKDIR = workdir_flag()
WORKDIRS = workdirs_flag("trained runs of one text, in place of a chain", required=False)
SETTINGS = settings_flags("repairs")


def main(_):
  from diffusion_text.studies import repairs

  settings, workdir = repairs.Settings(**SETTINGS()), pathlib.Path(WORKDIR.value)
  if workdirs := WORKDIRS():
    if flags.FLAGS["chain"].present:
      raise ValueError(
        f"--chain={settings.chain} is for networks that know a chain, and the runs of --workdirs"
        " have texts; leave one of the two out"
      )
    from diffusion_text.experiment.run import load
    from diffusion_text.studies import trained_repairs

    runs = {name: load(workdir) for name, workdir in workdirs.items()}
    return print(trained_repairs.run(settings, runs, workdir))
  from diffusion_text.testing.chain_network import chain_model

  print(repairs.run(settings, chain_model, workdir))


if __name__ == "__main__":
  run(main)
