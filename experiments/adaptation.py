r"""What pretrained weights are worth as the start of another system: a table of starts and controls
at equal updates of the same network on the same rows (studies/adaptation.py).

  python -m experiments.adaptation --from=SmolLM2-135M.gguf --workdir=runs/adaptation \
      --config=configs/diffullama.py:tiny --config.optimizer.learning_rate=1e-4 --steps=40

--from: weights as experiments.convert reads them, or a workdir. --starts: weights, untrained,
scratch, scratch_longer (three times the updates), unshifted, at_once (no annealing); for processes
of vectors exact, principal, random.
"""

import pathlib

from absl import flags

from experiments.flags import config_flag, run, workdir_flag
from experiments.paths import path_flag
from experiments.settings import settings_flags

FROM = path_flag("from", "weights, or a workdir", required=True)
WORKDIR = workdir_flag()
CONFIG = config_flag("configs/diffullama.py:tiny")
STARTS = flags.DEFINE_list("starts", ["weights", "untrained", "scratch"], "lines of the table")
SETTINGS = settings_flags("adaptation")


def main(_):
  from diffusion_text.studies import adaptation

  settings = adaptation.Settings(**SETTINGS())
  place = pathlib.Path(WORKDIR.value)
  print(adaptation.run(FROM.value, CONFIG.value, STARTS.value, settings, place))


if __name__ == "__main__":
  run(main)
