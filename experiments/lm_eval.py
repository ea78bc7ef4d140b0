"""The command lm_eval, with workdirs as models; its flags are its own.

  python -m experiments.lm_eval --model diffusion_text --model_args workdir=runs/mdlm \\
      --batch_size 16 --tasks lambada_openai [--include_path=my_tasks]

docs/lm_eval.md lists the options of --model_args. It needs pip install -e '.[lm_eval]'.
"""

import os
import sys

from experiments.flags import USER_ERRORS, fail
from experiments.paths import show_any_text


def main():
  from diffusion_text.studies.lm_eval_adapter import register

  show_any_text()
  if set(sys.argv[1:]) & {"-h", "--help"}:
    print(f"{__doc__}\n{'-' * 8}")
  # lm_eval would fork this process, whose threads hold locks, for the errors of its metrics.
  os.environ.setdefault("DISABLE_MULTIPROC", "1")
  try:
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
  except USER_ERRORS as error:
    fail(" ".join(str(error).split()))


if __name__ == "__main__":
  main()
