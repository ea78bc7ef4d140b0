r"""Prints what a config is, without running it, or what can be chosen.

  # Parameters, sharding, FLOPs, memory.
  python -m experiments.inspect --config=configs/mdlm.py:small
  # The names that a section may have.
  python -m experiments.inspect --options=process
  # The options of one choice: meaning, default, range.
  python -m experiments.inspect --options=process.embedding
  # What the TPU compiler makes of it for a slice that is not there (needs libtpu; minutes for the
  # large sizes).
  python -m experiments.inspect --config=configs/mdlm.py:1b --topology=v5e:16x16 \
      --vocab_size=32000 [--sampler]
"""

from absl import flags

from experiments.flags import config_flag, run

CONFIG = config_flag("configs/mdlm.py:tiny")
OPTIONS = flags.DEFINE_string("options", None, "a section, or section.name: what can be set in it")
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "compile the train step for it: v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:4x4x4"
)
SAMPLER = flags.DEFINE_bool(
  "sampler", False, "with --topology: the sampler too, on evaluate.batch_size rows"
)
VOCAB = flags.DEFINE_integer(
  "vocab_size", None, "V; default that of the config's tokenizer", lower_bound=2
)


def main(_):
  from diffusion_text.compiler import topology
  from diffusion_text.experiment import summary
  from diffusion_text.experiment.build import build
  from diffusion_text.experiment.options import options_table

  if OPTIONS.value:
    print(options_table(OPTIONS.value))
    return
  devices = topology.topology_devices(TOPOLOGY.value) if TOPOLOGY.value else None
  any_tokens = summary.AnyVocabulary(VOCAB.value) if VOCAB.value else None
  experiment = build(CONFIG.value, tokenizer=any_tokens, devices=devices)
  print(summary.parameter_table(experiment))
  print()
  print(summary.summary(experiment), flush=True)
  if TOPOLOGY.value:
    print()
    step = topology.compile_step(experiment, TOPOLOGY.value)
    print(topology.report("train step", step), flush=True)
    if SAMPLER.value:
      print(topology.memory("sampler", topology.compile_sampler(experiment, TOPOLOGY.value)))


if __name__ == "__main__":
  run(main)
