r"""Steers a generator to an attribute that it was never told of, and shows what that costs: one
table.

  python -m experiments.control --workdir=runs/control
  python -m experiments.control --workdir=runs/control --system=configs/diffusion_lm.py \
      --guidance=latents --inner_steps=3

The attribute is the novel (--target) that a row of text seems to be from. What is trained already
is not trained again: the generator is kept in the workdir under its system's name, the
autoregressive judge under "judge"; the classifiers take seconds.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from experiments.flags import config_flag, run, workdir_flag

WORKDIR = workdir_flag()
BASE = config_flag("configs/control.py", name="base")  # what generator and judge share
SYSTEM = config_flag("configs/mdlm.py", name="system")  # what the generator owns
JUDGE = config_flag("configs/autoregressive.py", name="judge")
TARGET = flags.DEFINE_string("target", "emma", "the source that text should seem to be from")
GUIDANCE = flags.DEFINE_enum(
  "guidance", "logits", ["logits", "latents"], "by a classifier of text, or of noised vectors"
)
WRT = flags.DEFINE_enum(
  "wrt",
  "probabilities",
  ["probabilities", "logits"],
  "guidance=logits: gradient with respect to what",
)
STRENGTHS = flags.DEFINE_list("strengths", ["2", "4", "8"], "of the gradient")
INNER_STEPS = flags.DEFINE_integer("inner_steps", 1, "gradients per network call", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "of the sampler; default the base's", lower_bound=1)
NUM = flags.DEFINE_integer(
  "num", 64, "rows drawn at each strength, a multiple of 32", lower_bound=32
)
CLASSIFIER_STEPS = flags.DEFINE_integer(
  "classifier_steps", 300, "updates of each classifier", lower_bound=1
)
JUDGE_STEPS = flags.DEFINE_integer(
  "judge_steps", 800, "training steps of the judge, which learns from every token", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "of classifiers and samples", lower_bound=0)


def main(_):
  from diffusion_text.experiment.registry import with_steps
  from diffusion_text.studies import control
  from diffusion_text.studies.compare import merge
  from diffusion_text.studies.control_report import report

  settings = control.Settings(
    target=TARGET.value,
    strengths=tuple(float(strength) for strength in STRENGTHS.value),
    classifier_steps=CLASSIFIER_STEPS.value,
    **{flag.name: flag.value for flag in (GUIDANCE, WRT, INNER_STEPS, NUM, SEED)},
  )
  workdir, base = pathlib.Path(WORKDIR.value), BASE.value
  name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["system"])).stem
  config = merge(base, SYSTEM.value)
  steps = STEPS.value or base.sampler.get("steps")
  if steps:
    config.sampler = with_steps("sampler", config.sampler.to_dict(), steps)
  generator = control.trained_in(config, workdir / name)
  steered = control.steer(generator, settings)
  config = merge(base, JUDGE.value)
  config.train.steps = JUDGE_STEPS.value
  judge = control.trained_in(config, workdir / "judge", generator.experiment.tokenizer)
  print(report(steered, judge, settings))


if __name__ == "__main__":
  run(main)
