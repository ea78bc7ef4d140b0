"""Randomness by name and by token: streams of a key, and one key per position.

A stream is named by a string, a row by its number in the global batch, a position by its place.
Draws therefore depend neither on the devices nor on the microbatches of a run, the draw of a token
does not depend on its batch, and a new stream changes no other.

`keys` is an array of typed keys of any shape. Every `draw_` function draws once per key.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from diffusion_text.core.numerics import likeliest
from diffusion_text.types import Key, Keys, Progress

# Under this implementation a draw that is mapped over many keys is that of each key alone. Under
# the others (rbg, unsafe_rbg), which JAX_DEFAULT_PRNG_IMPL may choose, the batch is drawn at once,
# and the draw of a token depends on its neighbours.
IMPLEMENTATION = "threefry2x32"


def make_key(seed: int) -> Key:
  """The key of a seed, the same whatever implementation JAX has as its default.

  Raises:
    ValueError: for a seed that does not fit in 32 bits, of which JAX would drop the rest.
  """
  if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed!r} must be an integer in 0 … 2**32 - 1; use {_fitting(seed)}")
  return jax.random.key(np.uint32(seed), impl=IMPLEMENTATION)


def _fitting(seed: object) -> int:
  return int(seed) % 2**32 if isinstance(seed, int | np.integer) else 0


def wrap_keys(data: UInt32[Array, "... 2"]) -> Keys:
  """Typed keys [...] of their numbers, as `jax.random.key_data` gave them."""
  return jax.random.wrap_key_data(data, impl=IMPLEMENTATION)


def check_key(key: Keys) -> None:
  """Raises ValueError for keys of an implementation under which rows are not independent."""
  found = str(jax.random.key_impl(key))
  if found != IMPLEMENTATION:
    raise ValueError(
      f"keys of the implementation {found!r} make the draws of a row depend on its batch; make them"
      f" with jax.random.key(seed, impl={IMPLEMENTATION!r}), or unset JAX_DEFAULT_PRNG_IMPL"
    )


def stream(key: Key, name: str) -> Key:
  """An independent key, named by a string."""
  # crc32 because Python's own `hash` of a string differs from one process to the next.
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def streams(keys: Keys, name: str) -> Keys:
  """The stream `name` of every key: keys [...] -> keys [...]."""
  return fold(keys, zlib.crc32(name.encode()))


def fold(keys: Keys, number: Int[Array, "..."] | int) -> Keys:
  """An independent stream of every key: keys [...] -> keys [...].

  The stream is named by a number, or by numbers that broadcast to the shape of the keys.
  """
  if jnp.ndim(number) == 0:
    return _map_keys(lambda key: jax.random.fold_in(key, number), keys)
  return _map_keys(jax.random.fold_in, keys, jnp.broadcast_to(number, keys.shape))


def global_rows(rows: int, progress: Progress) -> Int[Array, " rows"]:
  """The number of each row of this microbatch in the global batch of the step.

  The trainer interleaves rows, see `train.step.split_rows`.
  """
  group, parts = progress.units, progress.parts
  row = jnp.arange(rows)
  return ((row // group) * parts + jnp.asarray(progress.part)) * group + row % group


def position_keys(key: Key, rows: int, length: int, progress: Progress | None = None) -> Keys:
  """Keys [rows, length], named by the row's number in the global batch and the place in the row."""
  check_key(key)
  numbers = global_rows(rows, Progress() if progress is None else progress)
  return token_keys(jax.vmap(lambda row: jax.random.fold_in(key, row))(numbers), length)


def row_keys(seed: int, rows: int, first: int = 0) -> Keys:
  """Keys [rows], named by the number of each row of text.

  Row r has the same key in every batch, and alone.
  """
  return numbered_keys(seed, first + jnp.arange(rows))


def numbered_keys(seed: int, numbers: Int[Array, " rows"]) -> Keys:
  """Keys [rows] of the rows of text with these numbers, as in `row_keys`."""
  key = make_key(seed)
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(numbers)


def token_keys(keys: Keys, length: int) -> Keys:
  """Keys [B, length] from keys [B] of rows: one key per position, named by the position."""
  check_key(keys)
  places = jnp.arange(length)
  return jax.vmap(lambda key: jax.vmap(lambda place: jax.random.fold_in(key, place))(places))(keys)


def row_coins(key: Key, rows: int, progress: Progress, probability: float) -> Bool[Array, " rows"]:
  """bool [rows]: one coin per row of the global batch, for any devices and microbatches."""
  numbers = global_rows(rows, progress)
  return jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row), probability))(
    numbers
  )


def draw_uniform(keys: Keys) -> Float[Array, "..."]:
  """One float32 uniform in [0, 1) per key: keys [...] -> [...]."""
  return _map_keys(jax.random.uniform, keys)


def draw_normal(keys: Keys, width: int) -> Float[Array, "... {width}"]:
  """`width` standard normals per key: keys [...] -> float32 [..., width]."""
  return _map_keys(lambda key: jax.random.normal(key, (width,)), keys)


def draw_integer(keys: Keys, below: int) -> Int[Array, "..."]:
  """One int32 in 0 … below - 1 per key: keys [...] -> [...]."""
  return _map_keys(lambda key: jax.random.randint(key, (), 0, below), keys)


def draw_categorical(keys: Keys, logits: Float[Array, "... V"]) -> Int[Array, "..."]:
  """One id per key from softmax(logits): keys [...], logits [..., V] -> int32 [...].

  Gumbel-max with the high-resolution Gumbel. Plain float32 uniforms cut the tail at 15.9 and so
  never draw rare tokens, which lowers the entropy of samples and flatters generative perplexity
  (measured on published samples in arXiv 2409.02908).
  """

  def noisy(key, row):
    return jax.random.gumbel(key, row.shape, row.dtype, mode="high") + row

  return likeliest(_map_keys(noisy, keys, logits)).astype(jnp.int32)


def _map_keys(draw, keys: Keys, *rows: Array):
  for _ in range(keys.ndim):
    draw = jax.vmap(draw)
  return draw(keys, *rows)
