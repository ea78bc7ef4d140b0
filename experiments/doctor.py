"""Says in one screen what this machine can do (Python, jax, devices, kernels, memory, extras), and
what would make it faster, each with the command that mends it.

  python -m experiments.doctor
"""

import importlib.metadata
import importlib.util
import sys

from experiments.flags import run

EXTRAS = {  # extra: (a module that it brings, what it is for)
  "tpu": ("libtpu", "train on a TPU, or compile for one without having it"),
  "cuda": ("jax_cuda13_plugin", "train on an NVIDIA GPU"),
  "pretrained": ("safetensors", "pretrained weights"),
  "metrics": ("sacrebleu", "BLEU and ROUGE"),
  "wandb": ("wandb", "metrics at Weights & Biases (--config.train.wandb=PROJECT)"),
  "test": ("pytest", "launch/test"),
}


def main(_):
  import jax

  from diffusion_text.kernels.attention import IMPLEMENTATIONS
  from diffusion_text.studies.advice import advice
  from diffusion_text.studies.machine import look

  print(f"python   {sys.version.split()[0]}")
  for name in (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "sentencepiece",
  ):
    print(f"{name:<20} {importlib.metadata.version(name)}")
  print(
    f"\nbackend  {jax.default_backend()}, process {jax.process_index()} of {jax.process_count()}"
  )
  for device in jax.devices():
    stats = device.memory_stats() or {}
    limit = f", {stats['bytes_limit'] / 2**30:.1f} GiB" if "bytes_limit" in stats else ""
    print(f"  device {device.id}: {device.device_kind}{limit}")
  machine = look()
  print(
    f"host     {machine.cores} cores, {machine.memory_gib:.0f} GiB memory,"
    f" {machine.free_gib:.0f} GiB free on this disk"
  )
  print(f"\nattention implementations: {', '.join(IMPLEMENTATIONS)}")
  print("\nextras")
  for extra, (module, purpose) in EXTRAS.items():
    found = importlib.util.find_spec(module) is not None
    print(
      f"  {extra:<11} {'installed' if found else 'missing  '}  {purpose}"
      + ("" if found else f": pip install -e '.[{extra}]'")
    )
  found = advice(machine)
  print("\nwhat would make it faster" if found else "\nnothing was found that slows it down")
  for each in found:
    print(f"  {each}")


if __name__ == "__main__":
  run(main)
