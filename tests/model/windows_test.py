"""Sliding windows: attention with a mask written out, who sees whom in a network, scanned or not,
and the kernels that have none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from diffusion_text.core.mesh_axes import AXES
from diffusion_text.kernels import attention as kernels
from diffusion_text.kernels import layout as layouts
from diffusion_text.kernels import xla
from diffusion_text.kernels.block_sizes import compile_for
from diffusion_text.kernels.layout import EMPTY, Window
from diffusion_text.kernels.reference import reference
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, Layout

L, H, K = 44, 2, 8  # not a multiple of a tile
PLACE = np.arange(L, dtype=np.int32)[None]
SEGMENT = np.array([[0] * 9 + [1] * 13 + [2] * 22, [0] * 44], np.int32)
HALF = np.concatenate([PLACE[:, : L // 2], PLACE[:, : L // 2]], axis=1)
# name -> (layout, positions)
LAYOUTS = {
  "bidirectional": (Layout(), PLACE),
  "causal": (layouts.causal(L), PLACE),
  "packed": (layouts.packed(SEGMENT, 4), PLACE),
  "noisy clean": (layouts.noisy_clean(L // 2, 4), HALF),
}
IMPLEMENTATIONS = {
  "reference": reference,
  "dense": xla.attention,
  "chunked": functools.partial(xla.attention, chunk=16),
}


def arrays():
  draw = np.random.default_rng(0).standard_normal
  return [np.float32(draw((2, L, H, K))) for _ in range(4)]


def dense(q, k, v, layout, position, size):
  """Attention written out, float64, with the sentence in `types.Layout` and the window as loops."""
  fields = [
    np.zeros((2, L), int) if field is None else np.broadcast_to(field, (2, L))
    for field in (layout.segment, layout.block, layout.noisy)
  ]
  place = np.broadcast_to(position, (2, L))
  sees = np.zeros((2, L, L), bool)
  for row in range(2):
    segment, block, noisy = (field[row] for field in fields)
    for i in range(L):
      for j in range(L):
        same = block[i] == block[j] and noisy[i] == noisy[j]
        rule = segment[i] == segment[j] and (same or (not noisy[j] and block[j] < block[i]))
        sees[row, i, j] = rule and -size < place[row, i] - place[row, j] < size
  q, k, v = (np.moveaxis(np.float64(x), 2, 1) for x in (q, k, v))
  scores = np.where(sees[:, None], q @ np.swapaxes(k, 2, 3) / np.sqrt(K), -np.inf)
  shares = np.exp(scores - scores.max(-1, keepdims=True))
  return np.moveaxis(shares / shares.sum(-1, keepdims=True) @ v, 1, 2)


@functools.cache
def run_of(name):
  """(out and gradients) of an implementation under a layout and a window, compiled once."""

  @jax.jit
  def run(q, k, v, g, layout, position, size):
    window = Window(size, position, position)
    attend = functools.partial(IMPLEMENTATIONS[name], window=window)
    out, pull = jax.vjp(lambda *qkv: attend(*qkv, layout, layout)[0], q, k, v)
    return (out, *pull(g))

  return run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_implementation_has_the_window(layout):
  """Against loops, with all gradients those of the reference; not with a window one too wide."""
  layout, position = LAYOUTS[layout]
  q, k, v, g = arrays()
  size = jnp.int32(7)
  want = dense(q, k, v, layout, position, 7)
  layout = layouts.materialise(layout, L) if layout.block is not None else layout
  exact = run_of("reference")(q, k, v, g, layout, position, size)
  np.testing.assert_allclose(exact[0], want, atol=1e-5)
  wider = run_of("reference")(q, k, v, g, layout, position, jnp.int32(8))
  assert np.abs(wider[0] - want).max() > 1e-2
  for name in ("dense", "chunked"):
    got = run_of(name)(q, k, v, g, layout, position, size)
    for one, other in zip(got, exact):
      np.testing.assert_allclose(one, other, atol=3e-5, err_msg=name)


def test_tiles_that_are_too_far_are_skipped():
  """Of a causal row of 8 tiles, each query tile works on its own and the one before."""
  row = np.arange(128, dtype=np.int32)[None]
  sides = (*[layouts.causal(128)] * 2, 128, 128, 16, 16)
  kinds = jax.jit(lambda size: layouts.cut(*sides, Window(size, row, row)).kinds)
  for size, tiles in ((16, 15), (17, 15), (18, 21), (1, 8)):
    assert (np.asarray(kinds(size)) != EMPTY).sum() == tiles, size


def test_kernels_without_windows_are_passed_over():
  """One line that names what can; with XLA behind it, XLA's result."""
  q, k, v, _ = arrays()
  window = Window(7, PLACE, PLACE)
  attend = functools.partial(kernels.attention, q, k, v, Layout(), Layout(), window=window)
  for platform, kernel in (("tpu", "pallas_tpu"), ("gpu", "cudnn")):
    with (
      compile_for(platform),
      pytest.raises(NotImplementedError, match=f"add 'xla'.*{kernel}: it has no window") as raised,
    ):
      attend(implementation=kernel)
    assert "\n" not in str(raised.value)
  got = jax.jit(lambda: attend(implementation=("pallas_tpu", "pallas_gpu", "xla")))()
  np.testing.assert_allclose(got, dense(q, k, v, Layout(), PLACE, 7), atol=1e-5)
  with pytest.raises(ValueError, match=r"window.key has the shape \(1, 43\); it must be"):
    kernels.attention(q, k, v, Layout(), Layout(), window=Window(7, PLACE, PLACE[:, 1:]))


IDS = np.random.default_rng(5).integers(0, 12, (1, 10)).astype(np.int32)
TEN = np.arange(10, dtype=np.int32)[None]


def reach(network, params, block):
  """[changed, read]: whether a token's logits depend on another token."""

  @jax.jit
  def read(ids):
    rows = rows_of(Inputs(ids), layout=Layout(block=jnp.broadcast_to(block, ids.shape)))
    return network.apply(params, rows).logits

  ids = np.repeat(IDS, 11, axis=0)
  for other in range(10):
    ids[other, other] = (ids[other, other] + 1) % 12
  logits = np.asarray(read(ids))
  return np.abs(logits[:10] - logits[10:]).max(-1) > 1e-6


def test_a_network_sees_as_far_as_its_windows_reach():
  """Two layers of window 3 reach 4 to each side, also where they are scanned; with one of them
  full, all is seen; one layer reaches 2."""
  network = small_transformer(window=3)
  params = noisy_parameters(network)
  away = np.abs(TEN.T - TEN)
  np.testing.assert_array_equal(reach(network, params, 0 * TEN), away <= 4)
  scanned = network.like(scan_layers=True)
  np.testing.assert_array_equal(reach(scanned, params, 0 * TEN), away <= 4)
  causal = (away <= 4) & (TEN.T <= TEN)
  np.testing.assert_array_equal(reach(network, params, TEN), causal)
  assert reach(network.like(full_layers=(1,)), params, 0 * TEN).all()
  first = network.like(layers=1)
  one = params | {"blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
  np.testing.assert_array_equal(reach(first, one, 0 * TEN), away <= 2)


def test_scanned_kept_and_spread_layers_are_the_same_numbers():
  """Values and gradients of a network with windows in some layers: scanned, made again in the
  backward pass and split over rows and positions at once. Other layers are not these."""
  network = small_transformer(layers=3, window=3, full_layers=(1,))
  params = noisy_parameters(network)
  ids = np.random.default_rng(5).integers(0, 12, (2, 16)).astype(np.int32)

  def run(network):
    def cost(params):
      return jnp.mean(network.apply(params, rows_of(Inputs(ids))).logits ** 2)

    return jax.tree.leaves(jax.jit(jax.value_and_grad(cost))(params))

  want = run(network)
  mesh = jax.make_mesh((1, 2, 1, 4, 1), AXES, axis_types=(AxisType.Auto,) * 5)
  with jax.set_mesh(mesh):
    got = run(network.like(scan_layers=True, remat="full"))
  for one, other in zip(got, want):
    np.testing.assert_allclose(one, other, atol=2e-5)
  moved = run(network.like(full_layers=(2,)))
  assert max(np.abs(a - b).max() for a, b in zip(moved, want)) > 1e-3


@pytest.mark.parametrize(
  "change,match",
  [
    ({"full_layers": (0,)}, "window=0 gives none to any layer"),
    ({"window": 3, "full_layers": (2,)}, "must be layers of 0 … 1; there is no 2"),
    ({"window": 3, "full_layers": (0, 1)}, "which are all layers; use window=0"),
    ({"window": 3, "time_conditioning": "prefix"}, "window=3 hides the prefix"),
  ],
)
def test_bad_options_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    small_transformer(**change)
