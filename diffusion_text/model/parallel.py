"""Activations on a mesh: where they lie, and attention over each device's own rows and heads.

All of it reads the mesh in scope (`jax.set_mesh`) and does nothing where there is none, or where a
size does not divide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from diffusion_text.core.mesh_axes import ROWS
from diffusion_text.kernels import attention as kernels
from diffusion_text.kernels.layout import Window
from diffusion_text.model.partition import split
from diffusion_text.types import Layout

SEQUENCE = "sequence"  # the mesh axis over which the positions of a row are split


def mesh_sizes() -> dict[str, int]:
  """Axis -> devices of the mesh in scope; {} if there is none."""
  return dict(jax.sharding.get_abstract_mesh().shape)


def token_spec(rows: int, length: int, *rest: str | tuple[str, ...] | None) -> PartitionSpec:
  """Where an array [rows, length, …] of tokens lies: rows over replica × fsdp, positions over
  sequence, if they divide."""
  sizes = mesh_sizes()
  over = math.prod(sizes.get(axis, 1) for axis in ROWS)
  positions = sizes.get(SEQUENCE, 1)
  return PartitionSpec(
    ROWS if over > 1 and rows % over == 0 else None,
    SEQUENCE if positions > 1 and length % positions == 0 else None,
    *rest,
  )


def placed(x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
  """The same, held where `token_spec` says: the compiler would else guess, from the weights."""
  if math.prod(mesh_sizes().values()) == 1:
    return x
  return jax.lax.with_sharding_constraint(x, token_spec(*x.shape[:2], None))


def attention(
  q: Float[Array, "B L H K"],
  k: Float[Array, "B S G K"],
  v: Float[Array, "B S G K"],
  q_layout: Layout,
  k_layout: Layout,
  implementation: Sequence[str],
  window: Window | None = None,
) -> Float[Array, "B L H K"]:
  """`kernels.attention` on each device's own rows, heads and queries, as the mesh splits them.

  The compiler can split XLA attention by itself but not a Pallas kernel, so the split is made by
  hand for all. Over the sequence, each device has its part of the queries and gathers all keys and
  values (their gradients are summed and scattered on the way back); the layouts of the keys, three
  integers each, and their positions for a window are on every device. Where rows or positions do
  not divide over the mesh, the XLA implementation is used and the split left to the compiler.
  """
  sizes = mesh_sizes()
  rows = math.prod(sizes.get(axis, 1) for axis in ROWS)
  positions = sizes.get(SEQUENCE, 1)
  alone = math.prod(sizes.values()) == 1
  if alone or q.shape[0] % rows or q.shape[1] % positions or k.shape[1] % positions:
    options = {"window": window, "implementation": implementation if alone else ("xla",)}
    return kernels.attention(q, k, v, q_layout, k_layout, **options)
  near = () if window is None else (window.query, window.key)

  def local(q, k, v, q_layout, k_layout, *near):
    if positions > 1:
      k, v = (jax.lax.all_gather(x, SEQUENCE, axis=1, tiled=True) for x in (k, v))
    options = {"window": Window(window.size, *near) if near else None}
    return kernels.attention(q, k, v, q_layout, k_layout, implementation=implementation, **options)

  def spec_of(layout, over):
    return jax.tree.map(lambda ids: PartitionSpec(ROWS if ids.shape[0] > 1 else None, over), layout)

  of_heads = PartitionSpec(ROWS, SEQUENCE, split("heads", k.shape[2], sizes) or None, None)
  layouts = (spec_of(q_layout, SEQUENCE), spec_of(k_layout, None))
  places = (spec_of(each, over) for each, over in zip(near, (SEQUENCE, None)))
  in_specs = (of_heads, of_heads, of_heads, *layouts, *places)
  sharded = jax.shard_map(local, in_specs=in_specs, out_specs=of_heads, check_vma=False)
  return sharded(q, k, v, q_layout, k_layout, *near)
