r"""Tasks with verifiers: what there are, their examples, and the answers of a trained model.

  python -m experiments.tasks                                    # the names, with one line each
  python -m experiments.tasks --task=countdown3 --show=5         # examples, and baselines' scores
  python -m experiments.tasks --task=scan --option=path=scan/tasks_test_simple.txt
  python -m experiments.tasks --workdir=runs/countdown --num=200 --show=5 [--steps=32]

A run on a task is trained by
  python -m experiments.train --config=configs/mdlm.py:tiny --workdir=runs/countdown \
      --config.data.corpus=task --config.data.packing=pairs --config.data.task=countdown3 \
      --config.data.length=64
"""

from absl import flags

from experiments.flags import run, workdir_flag

WORKDIR = workdir_flag(required=False)
TASK = flags.DEFINE_string("task", None, "a name; its examples are shown and baselines scored")
OPTION = flags.DEFINE_multi_string("option", [], "an option of the task, as in train_size=1000")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "which examples")
NUM = flags.DEFINE_integer("num", 100, "only the first prompts", lower_bound=1)
SHOW = flags.DEFINE_integer("show", 3, "examples to print", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "of the sampler; default the run's", lower_bound=1)
SAMPLER = flags.DEFINE_multi_string("sampler", [], "an option of config.sampler, as in steps=32")


def main(_):
  from diffusion_text.experiment import registry
  from diffusion_text.experiment import run as runs
  from diffusion_text.experiment.decoding import sampler_of
  from diffusion_text.studies import tasks

  if WORKDIR.value is None and TASK.value is None:
    print(tasks.listing())
    return
  where = {"split": SPLIT.value, "num": NUM.value}
  if WORKDIR.value is not None:
    trained = runs.load(WORKDIR.value)
    task = tasks.task_of(trained)
    sampler = sampler_of(trained.experiment, SAMPLER.value, steps=STEPS.value)
    one, written = tasks.answered(trained, seed=SEED.value, sampler=sampler, **where)
    print(tasks.shown(one, SHOW.value))
    print(f"model: {tasks.line(one.scores)}; {written.calls:g} network calls")
  else:
    options = dict(registry.named_value(each, "option") for each in OPTION.value)
    task = tasks.made(TASK.value, options)
    for example in task.examples(SPLIT.value)[: SHOW.value]:
      print(f"{example.prompt} => {' | '.join(example.answers)}")
  for name, one in tasks.baselines(task, **where).items():
    print(f"{name}: {tasks.line(one.scores)}")


if __name__ == "__main__":
  run(main)
