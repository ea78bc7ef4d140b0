"""Prints what a config is, without running it: parameters with their sharding, FLOPs per token, memory; or what the TPU compiler makes of
it for a slice that is not there (needs libtpu; minutes for the large sizes).

python -m experiments.inspect --config=configs/mdlm.py:small
python -m experiments.inspect --config=configs/mdlm.py:1b --topology=v5e:16x16 --vocab_size=32000 [--sampler]
"""

from absl import flags

from experiments.flags import config_flag, run

CONFIG = config_flag("configs/mdlm.py:tiny")
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "compile the train step for it: v5e:16x16, v5p:8x8x8, v6e:16x16, …"
)
SAMPLER = flags.DEFINE_bool(
  "sampler", False, "with --topology: the sampler too, on evaluate.batch_size rows"
)
VOCAB = flags.DEFINE_integer(
  "vocab_size", None, "V; default that of the config's tokenizer", lower_bound=2
)


def main(_):
  from diffusion_text.compiler import topology
  from diffusion_text.experiment import summary as plan
  from diffusion_text.experiment.build import build

  devices = topology.topology_devices(TOPOLOGY.value) if TOPOLOGY.value else None
  experiment = build(
    CONFIG.value,
    tokenizer=plan.AnyVocabulary(VOCAB.value) if VOCAB.value else None,
    devices=devices,
  )
  print(plan.parameter_table(experiment))
  print()
  print(plan.summary(experiment), flush=True)
  if TOPOLOGY.value:
    print()
    print(
      topology.report("train step", topology.compile_step(experiment, TOPOLOGY.value)), flush=True
    )
    if SAMPLER.value:
      print(topology.memory("sampler", topology.compile_sampler(experiment, TOPOLOGY.value)))


if __name__ == "__main__":
  run(main)
