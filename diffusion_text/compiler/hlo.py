"""The text of a compiled program: how often each instruction runs, and the bytes that it moves.

XLA's own cost analysis counts the body of a loop once, so a scanned network looks as cheap as one
layer. Here loops count with their numbers of turns. The results are arithmetic on the text of the
program, not measurements.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from diffusion_text.compiler.hlo_text import Instruction, read_computations

BYTES = {
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "s64": 8,
  "u64": 8,
  "f64": 8,
  "token": 0,
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Instructions that touch no memory themselves, or whose work is counted elsewhere, as that of loops
# in their bodies.
FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "after-all",
  "iota",
  "partition-id",
  "replica-id",
  "async-start",
  "async-update",
  "async-done",
  "copy-done",
  "slice-done",
  "opt-barrier",
  "domain",
  *(name + end for name in COLLECTIVES for end in ("", "-start", "-done")),
}


@dataclasses.dataclass(frozen=True)
class Step:
  """An instruction that runs.

  Attributes:
    instruction: The instruction.
    computation: The name of the computation that contains the instruction.
    times: How often it runs.
    fused: True inside a fusion.
    asynchronous: True if the program goes on while it runs.
  """

  instruction: Instruction
  computation: str
  times: float
  fused: bool
  asynchronous: bool


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation of a program.

  Attributes:
    kind: One of COLLECTIVES.
    payload: Bytes per chip and run of the whole array, which is the result of an all-gather and the
      operand of an all-reduce.
    times: How often it runs.
    group: The partitions of the first group.
    asynchronous: True if the program goes on while it runs.
    name: The name of the instruction.
  """

  kind: str
  payload: float
  times: float
  group: tuple[int, ...]
  asynchronous: bool
  name: str


class Program:
  """A compiled program as a table of computations, read from `compiled.as_text()`."""

  def __init__(self, text: str, unknown_trips: float = 1.0):
    """Reads a program.

    Args:
      text: The text of a compiled module.
      unknown_trips: The number of turns of a loop for which the compiler does not know the number.
        The loop over chunks of rows with logits is one: its turns depend on the scored tokens.

    Raises:
      ValueError: If the text has no entry.
    """
    self.unknown_trips = unknown_trips
    self.computations, self.entry = read_computations(text)
    if not self.entry:
      raise ValueError(
        f"no ENTRY in the program, which begins {text[:60]!r}; give the text of a compiled module"
      )

  @functools.cached_property
  def shapes(self) -> dict[tuple[str, str], str]:
    """A table (computation, instruction) -> shape."""
    return {(name, i.name): i.shape for name, body in self.computations.items() for i in body}

  def steps(self) -> Iterator[Step]:
    """Every instruction that runs, from the entry on, inside fusions too."""
    yield from self._walk(self.entry, 1.0, False, False)

  def _walk(
    self, computation: str, times: float, fused: bool, asynchronous: bool
  ) -> Iterator[Step]:
    for instruction in self.computations[computation]:
      yield Step(
        instruction,
        computation,
        times,
        fused,
        asynchronous or instruction.opcode.endswith("-start"),
      )
      opcode, attributes = instruction.opcode, instruction.attributes
      if opcode == "while":
        yield from self._walk(
          _called(attributes, "body")[0], times * self.trips(instruction), fused, asynchronous
        )
      elif opcode == "conditional":
        for branch in _called(attributes, "branch_computations") or _called(
          attributes, "(?:true|false)_computation"
        ):
          yield from self._walk(branch, times, fused, asynchronous)
      elif opcode in ("call", "async-start"):
        for callee in _called(attributes, "calls|to_apply"):
          yield from self._walk(callee, times, fused, asynchronous or opcode == "async-start")
      elif opcode == "fusion":
        overlapped = "async_collective" in attributes or "async-collective" in attributes
        for callee in _called(attributes, "calls"):
          yield from self._walk(callee, times, True, asynchronous or overlapped)
      elif opcode == "custom-call":  # a program for a sparse core, which TPU7x runs beside others
        for callee in _called(attributes, "called_computations"):
          yield from self._walk(callee, times, True, asynchronous)

  def trips(self, loop: Instruction) -> float:
    """The number of turns of a while loop.

    This is the compiler's note, or a count from 0 to a constant, or `unknown_trips`.
    """
    if known := re.search(r'"?known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes):
      return float(known.group(1))
    condition = {i.name: i for i in self.computations[_called(loop.attributes, "condition")[0]]}
    root = next(i for i in condition.values() if i.is_root)
    if root.opcode != "compare" or "direction=LT" not in root.attributes:
      return self.unknown_trips
    counter, bound = (_constant(condition.get(name)) for name in root.operands)
    if bound is None or counter is not None:
      return self.unknown_trips
    element = re.search(r"index=(\d+)", condition[root.operands[0]].attributes)
    if element is None:
      return self.unknown_trips
    place = int(element.group(1))
    body = {i.name: i for i in self.computations[_called(loop.attributes, "body")[0]]}
    updated = body.get(next(i for i in body.values() if i.is_root).operands[place])
    steps = []
    if updated is not None and updated.opcode == "add":
      steps = [_constant(body.get(name)) for name in updated.operands]
    # Windowed products are unrolled and count in steps of 2.
    step = next((step for step in steps if step is not None), 1)
    return math.ceil(bound / step)

  def collectives(self) -> list[Collective]:
    """Every collective that runs, in the order of the program.

    The TPU compiler spreads some collectives over several fusions, to run beside their matmuls.
    Such a collective appears in each of the fusions under one channel. It counts once, as often as
    the rarest of them runs.
    """
    found, spread = [], {}
    for step in self.steps():
      kind = step.instruction.opcode.removesuffix("-start")
      if kind not in COLLECTIVES:
        continue
      group = replica_group(step.instruction.attributes)
      payload = sum(size(self.shapes[step.computation, name]) for name in step.instruction.operands)
      if kind == "all-gather":
        payload *= max(len(group), 1)
      if kind == "all-reduce" and "all-reduce-scatter" in step.computation:
        # The TPU compiler's fusion of an all-reduce with the slice that each chip keeps.
        kind = "reduce-scatter"
      this = Collective(kind, payload, step.times, group, step.asynchronous, step.instruction.name)
      channel = re.search(r"channel_id=(\d+).*chain_id=", step.instruction.attributes)
      if channel is None:
        found.append(this)
      else:
        before = spread.get(channel.group(1), this)
        spread[channel.group(1)] = dataclasses.replace(
          this, times=min(this.times, before.times), asynchronous=True
        )
    return [*found, *spread.values()]

  def matmul_flops(self) -> float:
    """The FLOPs of every matrix product that the compiler sees, 2 per multiply-add.

    Recomputation and repeated work count. Products inside Pallas kernels do not.
    """
    return sum(step.times * self._flops(step) for step in self.steps())

  def costs(self) -> list[tuple[float, float, float]]:
    """(times, FLOPs, bytes) of each instruction outside fusions.

    A fusion has the FLOPs of the instructions in it.
    """
    rows = []
    for step in self.steps():
      if not step.fused:
        rows.append([step.times, 0.0, self._touched(step)])
      rows[-1][1] += self._flops(step)
    return [tuple(row) for row in rows]

  def _flops(self, step: Step) -> float:
    instruction = step.instruction
    if instruction.opcode not in ("dot", "convolution"):
      return 0.0
    left, right = (_dims(self.shapes[step.computation, name]) for name in instruction.operands[:2])
    if instruction.opcode == "dot":
      axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
      return (
        2
        * math.prod(_dims(instruction.shape))
        * math.prod(left[int(axis)] for axis in axes.split(",") if axis)
      )
    lhs, rhs, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    result = _dims(instruction.shape)
    flops = 2.0 * right[rhs.index("i")]
    for label, count in zip(out, result):
      if not label.isdigit():
        flops *= count
      else:
        flops *= _pairs(
          instruction.attributes, int(label), left[lhs.index(label)], right[rhs.index(label)], count
        )
    return flops

  def memory_bytes(self) -> float:
    """Bytes that all instructions read from and write to the main memory of a chip.

    Each array counts once per instruction that uses it. Arrays in the fast memory of the chip
    (memory space S(1)) are free. A slice counts the part that it reads, an update in place the part
    that it writes. Repeated reads by a Pallas kernel are not known here.
    """
    return sum(step.times * self._touched(step) for step in self.steps() if not step.fused)

  def _touched(self, step: Step) -> float:
    instruction = step.instruction
    opcode = instruction.opcode

    def shape_of(name):
      return self.shapes[step.computation, name]

    if opcode in FREE or (
      opcode == "custom-call" and "tpu_custom_call" not in instruction.attributes
    ):
      return 0.0  # custom calls other than Pallas kernels are notes of the compiler
    if opcode in ("dynamic-slice", "slice", "gather"):
      return 2 * size(instruction.shape, in_memory=True)
    if opcode == "dynamic-update-slice":
      return 2 * size(shape_of(instruction.operands[1]), in_memory=True)
    if opcode == "slice-start":
      result = _parts(instruction.shape)[1]
      return size(result, in_memory=True) + size(result)
    if opcode == "copy-start":
      result = _parts(instruction.shape)[0]
      return size(result, in_memory=True) + size(shape_of(instruction.operands[0]), in_memory=True)
    reads = [size(shape_of(name), in_memory=True) for name in instruction.operands]
    writes = size(instruction.shape, in_memory=True)
    if opcode == "fusion":
      callee = _called(instruction.attributes, "calls")[0]
      reads = [min(read, self._read(callee, number)) for number, read in enumerate(reads)]
      writes = min(writes, self._written(callee))
    return sum(reads) + writes

  def _read(self, fusion: str, number: int) -> float:
    """Bytes that a fusion reads of its parameter `number`."""
    body = self.computations[fusion]
    parameter = next(
      (i for i in body if i.opcode == "parameter" and i.attributes.startswith(f"{number})")), None
    )
    users = [] if parameter is None else [i for i in body if parameter.name in i.operands]
    total = 0.0
    for user in users:
      if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
        total += size(user.shape)
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
        continue  # updated in place
      else:
        return math.inf
    return total if users else 0.0

  def _written(self, fusion: str) -> float:
    """Bytes that a fusion writes, if it updates arrays in place, otherwise infinity."""
    body = {i.name: i for i in self.computations[fusion]}
    root = next(i for i in body.values() if i.is_root)
    results = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if all(i.opcode != "dynamic-update-slice" for i in results):
      return math.inf
    updates = [
      body[i.operands[1]].shape if i.opcode == "dynamic-update-slice" else i.shape for i in results
    ]
    return sum(map(size, updates))


def size(shape: str, in_memory: bool = False) -> float:
  """The bytes of all parts of an HLO shape.

  With `in_memory`, only parts in the main memory of the chip count.
  """
  total = 0.0
  for part in _parts(shape):
    match = re.match(r"(\w+)\[([\d,<=]*)\]", part)
    if match is None or (in_memory and re.search(r"S\([1-9]\d*\)", part)):
      continue
    dtype, dims = match.groups()
    is_byte = dtype.startswith("f8") or dtype in ("s8", "u8")
    item = BYTES.get(dtype, 1 if is_byte else 4)
    total += item * math.prod(int(d.lstrip("<=")) for d in dims.split(",") if d)
  return total


def _constant(instruction: Instruction | None) -> int | None:
  """The value of a scalar integer constant, None for anything else."""
  found = (
    re.match(r"(-?\d+)\)", instruction.attributes)
    if instruction is not None and instruction.opcode == "constant"
    else None
  )
  return None if found is None else int(found.group(1))


def _pairs(attributes: str, axis: int, inputs: int, window: int, outputs: int) -> int:
  """The number of (output, window) places of one axis of a convolution without padded inputs.

  The TPU compiler writes batched products as convolutions whose window is mostly padding.
  """
  text = re.search(r"window=\{([^}]*)\}", attributes)
  found = dict(re.findall(r"(\w+)=([\w\-]+)", text.group(1) if text else ""))

  def of_axis(key: str, default: int) -> int:
    return int(found[key].split("x")[axis].split("_")[0]) if key in found else default

  stride = of_axis("stride", 1)
  low = of_axis("pad", 0)
  spread = of_axis("lhs_dilate", 1)
  step = of_axis("rhs_dilate", 1)
  place = np.arange(outputs)[:, None] * stride + np.arange(window) * step - low
  return int(((place >= 0) & (place <= (inputs - 1) * spread) & (place % spread == 0)).sum())


def _dims(shape: str) -> list[int]:
  return [int(d.lstrip("<=")) for d in re.search(r"\[([\d,<=]*)\]", shape).group(1).split(",") if d]


def replica_group(attributes: str) -> tuple[int, ...]:
  """The first group of partitions of a collective.

  The attribute is `replica_groups={{0,1},…}`, `[4,2]<=[2,4]T(1,0)` or `mesh['a'=4,'b'=2] {'a'}`, or
  source_target_pairs.
  """
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
    return tuple(map(int, pairs.groups()))
  if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
    return tuple(int(n) for n in listed.group(1).split(",") if n)
  if named := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{(.*?)\}", attributes):
    return _mesh_group(*named.groups())
  if iota := re.search(
    r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  ):
    groups, each, dims, order = iota.groups()
    numbers = np.arange(int(groups) * int(each)).reshape([int(d) for d in dims.split(",")])
    numbers = (
      numbers if order is None else numbers.transpose([int(axis) for axis in order.split(",")])
    )
    return tuple(numbers.reshape(int(groups), int(each))[0].tolist())
  return ()


def _mesh_group(mesh: str, axes: str) -> tuple[int, ...]:
  """Partitions that differ in `axes` only, and are 0 in all other axes.

  `axes` names 'a', or 'a':(2)4 for the 4 of the size of a after the first 2.
  """
  sizes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", mesh)}
  numbers = np.arange(math.prod(sizes.values()), dtype=int).reshape(list(sizes.values()))
  chosen = []
  parts = {
    name: (int(before or 1), int(part or sizes[name]))
    for name, before, part in re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", axes)
  }
  for name, size in sizes.items():
    before, part = parts.get(name, (1, 1))
    after = size // (before * part)
    chosen.append([number * after for number in range(part)])
  return tuple(numbers[np.ix_(*chosen)].ravel().tolist())


def _parts(shape: str) -> list[str]:
  """The leaves of a shape, as a list of shapes."""
  return re.findall(r"\w+\[[\d,<=]*\](?:\{[^}]*\})?", shape)


def _called(attributes: str, key: str) -> list[str]:
  """The names of the computations that an instruction calls under this attribute."""
  found = re.findall(rf"(?:^|[ ,])(?:{key})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", attributes)
  return [
    name.strip().lstrip("%") for many, one in found for name in (many.split(",") if many else [one])
  ]
