"""A config compiled for a TPU slice without a TPU: memory per chip, collectives and a roofline.

This needs libtpu. The compiler is the real one, so errors of a real run (memory, a kernel) appear
here too. The times are arithmetic on the compiled program (`hlo`) with the peaks of the chips
(`chips`), and therefore a bound on speed that no run will reach.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.compiler.chips import GIB, Chip, chip_of, collective_seconds
from diffusion_text.compiler.hlo import Program
from diffusion_text.core.trees import merge
from diffusion_text.experiment.build import Experiment
from diffusion_text.kernels.block_sizes import compile_for
from diffusion_text.model.flops import attention_flops, expert_flops
from diffusion_text.train.sharding import batch_sharding, replicated
from diffusion_text.types import Batch


def topology_devices(topology: str) -> list[Any]:
  """Descriptions of the devices of a TPU slice, which need not exist.

  Raises:
    ValueError: For an unknown name, or if libtpu is not installed.
  """
  chip_of(topology)
  from jax.experimental import topologies

  # libtpu asks for its machine and the neighbours; these variables answer.
  for key, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
  }.items():
    os.environ.setdefault(key, value)
  # Several processes may load libtpu, because no device is opened.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    return topologies.get_topology_desc(topology, "tpu").devices
  except Exception as error:
    # Jax raises different kinds for a missing library and an impossible shape.
    raise ValueError(
      f"topology={topology!r} cannot be described: {error}; "
      "is libtpu installed (pip install -e '.[tpu]')?"
    ) from error


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One compiled program on one topology.

  Attributes:
    topology: The name of the topology.
    text: The text of the program.
    arguments, temporaries, peak: Bytes per chip.
    coordinates: The coordinates of each chip.
    tokens: Tokens of one run, over all chips.
    model_flops: FLOPs of the model in one run, over all chips.
    in_kernels: FLOPs inside the kernels (attention, experts) in one run, over all chips, which the
      text does not show.
    unknown_trips: The assumed number of turns of loops over chunks of rows with logits, as if every
      token were scored. The true number is known at run time only.
    seconds: The time of compilation.
  """

  topology: str
  text: str
  arguments: float
  temporaries: float
  peak: float
  coordinates: Sequence[tuple[int, ...]]
  tokens: float
  model_flops: float
  in_kernels: float
  unknown_trips: float
  seconds: float


def compile_step(experiment: Experiment, topology: str) -> Compiled:
  """The compiled train step of an experiment that was built on `topology_devices(topology)`.

  Errors of the compiler are raised.
  """
  settings = experiment.train
  data = experiment.data
  model = experiment.model
  batch = Batch(_rows(experiment, settings.batch_size, jnp.int32))
  tokens = settings.batch_size * data.length
  loss = experiment.loss_fn(1.0)

  def lower():
    return experiment.jitted_step(loss).lower(experiment.abstract_state(), batch)

  with compile_for("tpu", experiment.mesh.devices.flat[0].device_kind):
    model_flops = experiment.flops_per_token * tokens
    in_kernels = _kernel_flops(experiment) * tokens
  per_shard = tokens / settings.accumulation / model.shards
  turns = -(-per_shard // model.chunk)
  return _compiled(experiment, topology, lower, tokens, model_flops, in_kernels, turns)


def _kernel_flops(experiment: Experiment) -> float:
  """FLOPs inside kernels of one train step, per token of text."""
  network = experiment.model.network
  # One forward pass, another one with rematerialisation, and the backward pass: of attention, whose
  # kernels compute the scores again for dq and for dk, dv, 7 products compared with 2.
  forwards = 1 + (network.remat != "none")
  length = experiment.data.length
  read = experiment.model.context.positions_read(length)
  attention = (forwards + 3.5) * attention_flops(network, length, read=read)
  experts = (forwards + 2) * expert_flops(network, length, read=read)
  return experiment.objective.passes * (attention + experts)


def compile_sampler(experiment: Experiment, topology: str) -> Compiled:
  """The compiled sampler of an experiment, on a batch of evaluation, placed as in training.

  Use `memory` only, and no roofline: the turns of its loops depend on the text.
  """
  rows = experiment.evaluate.batch_size
  state = experiment.abstract_state()
  params = merge(state.params, state.frozen)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=replicated(experiment.mesh))
  batch = Batch(_rows(experiment, rows, jnp.int32))

  def lower():
    return jax.jit(experiment.sample).lower(params, keys, batch)

  return _compiled(experiment, topology, lower, rows * experiment.data.length, 0.0, 0.0, 1)


def _rows(experiment: Experiment, rows: int, dtype: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(
    (rows, experiment.data.length), dtype, sharding=batch_sharding(experiment.mesh)
  )


def _compiled(experiment, topology, lower, tokens, flops, in_kernels, turns) -> Compiled:
  devices = experiment.mesh.devices.flat
  with jax.set_mesh(experiment.mesh), compile_for("tpu", devices[0].device_kind):
    lowered = lower()
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as directory:
    # The compiler writes the program to a file, because `compiled.as_text()` fails for chips with
    # sparse cores.
    compiled = lowered.compile(
      compiler_options={"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
    )
    programs = list(pathlib.Path(directory).glob("*.after_optimizations.txt"))
    # No file: the program came from the compilation cache. The step is by far the largest program,
    # if there are several.
    text = max((path.read_text() for path in programs), key=len) if programs else compiled.as_text()
  memory = compiled.memory_analysis()
  return Compiled(
    topology,
    text,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
    getattr(memory, "peak_memory_in_bytes", 0),
    [tuple(device.coords) for device in devices],
    tokens,
    flops,
    in_kernels,
    turns,
    time.perf_counter() - start,
  )


@dataclasses.dataclass(frozen=True)
class Roofline:
  """The least seconds of one run of a program on each chip, by resource.

  Attributes:
    compute: All FLOPs at the peak.
    memory: All bytes at the peak.
    chip: The instructions one after another, each as slow as the slower of its compute and memory.
    network: All collectives.
    hidden: The asynchronous collectives, which are part of `network`.
    tokens_per_chip: Tokens of one run.
    model_seconds: FLOPs of the model at the peak, the time of a perfect program.
  """

  compute: float
  memory: float
  chip: float
  network: float
  hidden: float
  tokens_per_chip: float
  model_seconds: float

  @property
  def step(self) -> float:
    """The least seconds of one run. Asynchronous collectives run beside the work of the chip."""
    return max(self.chip, self.hidden) + self.network - self.hidden

  @property
  def mfu(self) -> float:
    """Model FLOPs, without recomputation, over the peak FLOPs of the chip in `step`."""
    return self.model_seconds / self.step

  @property
  def binds(self) -> str:
    """The name of the resource that would be slowest alone."""
    return max((self.compute, "compute"), (self.memory, "memory"), (self.network, "network"))[1]


def roofline(compiled: Compiled) -> Roofline:
  """The roofline of a program by the peaks of its chip."""
  chip = chip_of(compiled.topology)
  program = Program(compiled.text, compiled.unknown_trips)
  chips = len(compiled.coordinates)
  per_instruction = [
    (times, flops / chip.flops, moved / chip.bandwidth) for times, flops, moved in program.costs()
  ]
  in_kernels = compiled.in_kernels / chips / chip.flops
  network = [(c, c.times * _seconds(c, compiled, chip)) for c in program.collectives()]
  return Roofline(
    compute=sum(times * compute for times, compute, _ in per_instruction) + in_kernels,
    memory=sum(times * memory for times, _, memory in per_instruction),
    chip=sum(times * max(compute, memory) for times, compute, memory in per_instruction)
    + in_kernels,
    network=sum(seconds for _, seconds in network),
    hidden=sum(seconds for c, seconds in network if c.asynchronous),
    tokens_per_chip=compiled.tokens / chips,
    model_seconds=compiled.model_flops / chips / chip.flops,
  )


def _seconds(collective, compiled: Compiled, chip: Chip) -> float:
  places = compiled.coordinates
  group = [places[number] for number in collective.group] if collective.group else places
  return collective_seconds(
    chip, collective.kind, collective.payload, group, np.max(places, axis=0) + 1
  )


def memory(name: str, compiled: Compiled) -> str:
  """The memory that a compiled program needs on a chip, as two lines of text."""
  return (
    f"{name} on {compiled.topology}, {len(compiled.coordinates)} chips (compiled in "
    f"{compiled.seconds:.0f} s)\n"
    f"memory       {verdict(compiled)}: arguments {compiled.arguments / GIB:.2f}, "
    f"temporaries {compiled.temporaries / GIB:.2f}, "
    f"peak by the compiler {compiled.peak / GIB:.2f} GiB per chip"
  )


def report(name: str, compiled: Compiled) -> str:
  """Lines of text about a compiled program: memory, collectives by kind, roofline."""
  chip = chip_of(compiled.topology)
  line = roofline(compiled)
  program = Program(compiled.text, compiled.unknown_trips)
  total = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
  for c in program.collectives():
    row = total[c.kind, len(c.group) or len(compiled.coordinates)]
    seconds = c.times * _seconds(c, compiled, chip)
    row[:] = (
      row[0] + c.times,
      row[1] + c.times * c.payload,
      row[2] + seconds,
      row[3] + seconds * c.asynchronous,
    )

  def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"

  lines = [memory(name, compiled)]
  for (kind, size), (times, payload, seconds, hidden) in sorted(
    total.items(), key=lambda item: -item[1][2]
  ):
    lines.append(
      f"collective   {kind} over {size}: {times:,.0f} runs, {payload / 1e9:,.3f} GB of arrays per "
      f"chip, {ms(seconds)}, {ms(hidden)} of it asynchronous"
    )
  lines += [
    f"roofline     compute {ms(line.compute)} ({line.model_seconds / line.compute:.0%} of it the "
    f"model's own FLOPs), memory {ms(line.memory)}, both per instruction {ms(line.chip)}, network "
    f"{ms(line.network)}, {ms(line.hidden)} of it beside other work",
    f"             at best {ms(line.step)} per run, {line.tokens_per_chip / line.step:,.0f} "
    f"tokens/s per chip, MFU {line.mfu:.0%}; {line.binds} binds; "
    f"with no overlap at all {ms(line.chip + line.network)}, MFU "
    f"{line.model_seconds / (line.chip + line.network):.0%}",
  ]
  return "\n".join(lines)


def verdict(compiled: Compiled) -> str:
  """Text that says if arguments and temporaries fit the chip, such as "fits: 11.2 of 16 GiB"."""
  chip = chip_of(compiled.topology)
  need = compiled.arguments + compiled.temporaries
  fits = "fits" if need <= chip.memory else "does not fit"
  return f"{fits}: {need / GIB:.1f} of {chip.memory / GIB:.0f} GiB"
