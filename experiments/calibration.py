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
POWERS = flags.DEFINE_list(
  "powers", ["reported", "1", "2", "3"], "times t = τ^power; reported: the times of reported bounds"
)
SEED = flags.DEFINE_integer("seed", 0, "of everything", lower_bound=0)


def main(_):
  from diffusion_text.studies import calibration, measures
  from diffusion_text.testing.exact_model import exact_model, small_language

  try:
    rows = tuple(map(int, ROWS.value))
    powers = tuple(None if text == "reported" else float(text) for text in POWERS.value)
  except ValueError as error:
    raise ValueError(
      f"--rows={','.join(ROWS.value)} --powers={','.join(POWERS.value)}: rows must be whole"
      " numbers, and powers numbers or 'reported'"
    ) from error
  language = small_language(vocab_size=3)
  known = calibration.Known(language, lambda p, t: exact_model(p, language, timing=t))
  how = {"repeats": REPEATS.value, "rows": rows, "powers": powers, "seed": SEED.value}
  workdir = pathlib.Path(WORKDIR.value)
  text = calibration.table(known, workdir, **how)
  measures.write(workdir, "calibration", text)
  print(text)


if __name__ == "__main__":
  run(main)
