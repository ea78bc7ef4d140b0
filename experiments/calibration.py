"""How often the 95 % intervals of the bound hold the truth, for processes, times and numbers of
rows: an exact network on a language that is known, so nothing is trained.

  python -m experiments.calibration --workdir=runs/calibration
"""

import pathlib

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag()
REPEATS = flags.DEFINE_integer("repeats", 200, "repetitions of each line", lower_bound=2)
ROWS = flags.DEFINE_list("rows", ["64", "512"], "rows of held-out text")
POWERS = flags.DEFINE_list("powers", ["1", "2", "3"], "of the times, t = τ^power")
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import calibration, measures
  from diffusion_text.testing.exact_model import exact_model, small_language

  try:
    rows, powers = tuple(map(int, ROWS.value)), tuple(map(float, POWERS.value))
  except ValueError as error:
    raise ValueError(f"--rows={ROWS.value} --powers={POWERS.value} must be numbers") from error
  language = small_language(vocab_size=3)
  known = calibration.Known(language, lambda p, t: exact_model(p, language, timing=t))
  text = calibration.table(known, repeats=REPEATS.value, rows=rows, powers=powers, seed=SEED.value)
  measures.write(pathlib.Path(WORKDIR.value), "calibration", text)
  print(text)


if __name__ == "__main__":
  run(main)
