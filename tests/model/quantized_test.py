"""Integers in place of matrices: bits as stored, grids, GPTQ against its definition, exact
rescaling, integer products, and what is seen of inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.model import linear_maps
from diffusion_text.model.quantized import gptq as compensated
from diffusion_text.model.quantized import grid as grids
from diffusion_text.model.quantized import methods
from diffusion_text.model.quantized.observed import together
from diffusion_text.model.quantized.packing import pack, unpack
from diffusion_text.model.quantized.rescaling import (
  awq,
  product_error,
  rescaled_nearest,
  smoothing,
)
from diffusion_text.model.quantized.stored import (
  Quantized,
  arrays_of,
  integer_product,
  kernel_of,
  rounded,
)
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs

ROWS = rows_of(Inputs(ids=np.arange(16).reshape(2, 8) % 12))


def correlated(rows=16, columns=6, count=400, seed=0, unequal=True):
  """(a matrix, its inputs [count, rows], correlated and of unequal sizes)."""
  random = np.random.default_rng(seed)
  mixing = random.normal(size=(rows, rows)) if unequal else np.eye(rows) + 0.5
  mixing = mixing * np.exp(random.normal(size=rows)) if unequal else mixing
  inputs = random.normal(size=(count, rows)) @ mixing
  return random.normal(size=(rows, columns)), inputs


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_codes_come_back_bit_for_bit_and_take_as_many_bits(bits):
  """Every code in every place of eight, against numpy's own bits; bytes are counted."""
  codes = np.random.default_rng(0).integers(0, 2**bits, (2, 24, 5)).astype(np.uint8)
  packed = pack(codes, bits)
  np.testing.assert_array_equal(pack(jnp.asarray(codes), bits), packed)
  assert packed.dtype == np.uint8 and packed.size * 8 == codes.size * bits
  np.testing.assert_array_equal(unpack(jnp.asarray(packed), bits), codes)
  bits_of = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
  stream = np.moveaxis(bits_of.reshape(2, 3, 8, 5, bits), 3, 2).reshape(2, 3, 5, 8 * bits)
  want = np.packbits(stream, axis=-1, bitorder="little")  # [2, 3, 5, bits]
  np.testing.assert_array_equal(packed.reshape(2, 3, bits, 5), np.moveaxis(want, -1, 2))
  if bits < 8:
    with pytest.raises(ValueError, match=r"has 12 inputs, and codes of bits=.* are packed 8 at"):
      pack(jnp.zeros((12, 2), jnp.uint8), bits)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("make", [grids.asymmetric, grids.symmetric])
def test_a_grid_holds_zero_and_its_extremes(make, bits):
  """No number is further from its value than half a step (the shifted zero costs another half)."""
  matrix = np.random.default_rng(1).normal(size=(32, 4)) + 0.3
  matrix[8:16, 2] = 0
  groups = grids.in_groups(matrix, 8)
  grid = make(groups, bits)
  values = grids.values_of(grids.nearest(groups, grid, bits), grid)
  assert (np.abs(values - groups) <= grid.scale * (1 + 1e-9)).all()
  inner = np.abs(groups - (groups.max(-2, keepdims=True) + groups.min(-2, keepdims=True)) / 2)
  middle = inner < 0.5 * inner.max(-2, keepdims=True)
  assert (np.abs(values - groups) <= 0.5 * grid.scale * (1 + 1e-9))[middle].all()
  assert (values[1, :, 2] == 0).all() and (grids.nearest(0 * groups, grid, bits) == grid.zero).all()
  codes = grids.nearest(groups, grid, bits)
  assert codes.min() >= 0 and codes.max() == 2**bits - 1
  if make is grids.symmetric:
    assert codes.min() >= 1 and (grid.zero == 2 ** (bits - 1)).all()


def by_definition(kernel, moment, options):
  """GPTQ as its definition says: after each row, the later rows are the best for all rows that are
  fixed, by solving for them anew."""
  rows = len(kernel)
  damped = moment + 0.01 * np.diag(moment).mean() * np.eye(rows)
  size, now, result, grid = options.group or rows, kernel.copy(), np.zeros_like(kernel), None
  for i in range(rows):
    if i % size == 0:
      grid = options.grid(now[i : i + size])
    codes = grids.nearest(now[i], grids.Grid(grid.scale[0], grid.zero[0]), options.bits)
    result[i] = (codes - grid.zero[0]) * grid.scale[0]
    later, fixed = slice(i + 1, rows), slice(0, i + 1)
    error = result[fixed] - kernel[fixed]
    now[later] = kernel[later] - np.linalg.solve(damped[later, later], damped[later, fixed] @ error)
  return result


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_is_its_definition(monkeypatch, bits, group):
  """With rows in one block, and with blocks that end within groups."""
  kernel, inputs = correlated()
  moment, options = inputs.T @ inputs, Quantized(bits=bits, group=group)
  want = by_definition(kernel, moment, options)
  for block in (128, 6):
    monkeypatch.setattr(compensated, "BLOCK", block)
    codes, grid = compensated.gptq(kernel, moment, options)
    values = grids.values_of(grids.in_groups(codes, group), grid).reshape(kernel.shape)
    np.testing.assert_allclose(values, want, atol=1e-9)
  alone, _ = compensated.gptq(kernel, np.eye(16), Quantized(bits=bits, group=0))
  groups = grids.in_groups(kernel, 0)
  grid = grids.asymmetric(groups, bits)
  np.testing.assert_array_equal(alone, grids.nearest(groups, grid, bits)[0])  # nothing to make good


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_costs_less_than_nearest_where_inputs_go_together(bits):
  """Inputs with a common part, of equal size: less than half the error of the product. (Where sizes
  differ much, corrections may leave a grid that is set once, and cost more than they save.)"""
  kernel, inputs = correlated(unequal=False)
  moment, options = inputs.T @ inputs, Quantized(bits=bits, group=8)
  codes, grid = compensated.gptq(kernel, moment, options)
  values = grids.values_of(grids.in_groups(codes, 8), grid).reshape(kernel.shape)
  plain = rescaled_nearest(kernel, np.ones(16), options)
  ours, theirs = (product_error(each - kernel, moment) for each in (values, plain))
  assert ours < 0.5 * theirs, (ours, theirs)
  assert theirs == pytest.approx(np.sum((inputs @ (plain - kernel)) ** 2))


def test_gptq_leaves_out_inputs_that_never_are():
  kernel, inputs = correlated()
  inputs[:, 3] = 0
  options = Quantized(bits=4, group=0)
  codes, grid = compensated.gptq(kernel, inputs.T @ inputs, options)
  assert (grids.values_of(codes, grid)[0, 3] == 0).all()
  with pytest.raises(ValueError, match="singular with damping=0"):
    compensated.gptq(kernel, np.ones((16, 16)), options, damping=0)


def test_awq_costs_no_more_than_nearest_and_moves_nothing_before_rounding():
  """A mutant that multiplies inputs instead of dividing them changes the product."""
  kernel, inputs = correlated()
  moment, options = inputs.T @ inputs, Quantized(bits=3, group=8)
  mean = np.abs(inputs).mean(axis=0)
  scale = awq(kernel, moment, mean, options)
  cost = product_error(rescaled_nearest(kernel, scale, options) - kernel, moment)
  plain = product_error(rescaled_nearest(kernel, np.ones(16), options) - kernel, moment)
  assert cost < plain and scale.max() * scale.min() == pytest.approx(1)
  tried = [mean ** (point / 20) for point in range(20)]
  costs = [product_error(rescaled_nearest(kernel, s, options) - kernel, moment) for s in tried]
  assert cost == pytest.approx(min(costs), rel=0.05)  # the grid is not invariant to a common factor
  for s in (scale, smoothing(kernel, np.abs(inputs).max(axis=0))):
    np.testing.assert_allclose((inputs / s) @ (kernel * s[:, None]), inputs @ kernel, rtol=1e-9)
    mutant = (inputs * s) @ (kernel * s[:, None])
    assert np.abs(mutant - inputs @ kernel).max() > 0.1


def test_smoothing_makes_inputs_and_rows_as_large():
  """Strength 1/2: max|x / s| = max|w · s| for every input."""
  kernel, inputs = correlated()
  peak = np.abs(inputs).max(axis=0)
  scale = smoothing(kernel, peak)
  np.testing.assert_allclose(peak / scale, np.abs(kernel * scale[:, None]).max(axis=1))
  assert smoothing(np.zeros((2, 3)), np.array([0.0, 1.0])).tolist() == [1.0, 1.0]


def quantized_network(network, params, arrays_of_kernel, options):
  """(the quantised network, its parameters): every matrix by the same function."""
  for name in linear_maps.names_of(params):
    made = [arrays_of_kernel(kernel) for kernel in linear_maps.get(params, name)["kernel"]]
    arrays = jax.tree.map(lambda *each: np.stack(each), *made)
    params = linear_maps.put(params, name, {"quantized": arrays})
  return network.like(quantized=options), params


@functools.cache
def program(network):
  return jax.jit(lambda params: network.apply(params, ROWS).features)


def features(network, params):
  return np.asarray(program(network)(params))


@pytest.fixture(scope="module")
def float_network():
  network = small_transformer(qk_norm=True)
  params = noisy_parameters(network, 0.02)
  return network, params, features(network, params)


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_rescaled_networks_are_the_float_network_but_for_rounding(float_network, method):
  """Groups of one number are exact, so that all that is left is the rescaling; without the factors
  of inputs it is another network."""
  network, params, want = float_network
  options = Quantized(bits=8, group=1, scaled_inputs=True)

  def rescaled(kernel):
    inputs = correlated(len(kernel), seed=1)[1]
    coarse = Quantized(bits=3, group=16)
    if method == "awq":
      scale = awq(kernel, inputs.T @ inputs, np.abs(inputs).mean(axis=0), coarse)
    else:
      scale = smoothing(kernel, np.abs(inputs).max(axis=0))
    assert scale.max() > 2 * scale.min()
    groups = grids.in_groups(kernel * scale[:, None], 1)
    grid = options.grid(groups)
    codes = grids.nearest(groups, grid, 8).reshape(kernel.shape)
    return arrays_of(codes, grid, options, 1 / scale)

  changed, arrays = quantized_network(network, params, rescaled, options)
  np.testing.assert_allclose(features(changed, arrays), want, atol=1e-5)
  np.testing.assert_allclose(features(*linear_maps.plain(changed, arrays)), want, atol=1e-5)
  without = network.like(quantized=Quantized(bits=8, group=1))
  assert np.abs(features(without, _without_inputs(arrays)) - want).max() > 0.1


def _without_inputs(tree):
  if not isinstance(tree, dict):
    return tree
  return {name: _without_inputs(inner) for name, inner in tree.items() if name != "inputs"}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_network_of_integers_is_that_of_their_values(float_network, bits):
  """To 1e-5, and init rounds to nearest; more bits are nearer to the float network."""
  network, params, want = float_network
  options = Quantized(bits=bits, group=16)

  def by_method(kernel):
    return methods.quantize_matrix(kernel, None, options, "nearest")

  changed, arrays = quantized_network(network, params, by_method, options)
  bare, plain = linear_maps.plain(changed, arrays)
  got = features(changed, arrays)
  assert bare == network
  np.testing.assert_allclose(got, features(bare, plain), atol=1e-5)
  error = np.abs(got - want).mean()
  assert {3: 0.03, 4: 0.01, 8: 1e-4}[bits] < error < {3: 1.0, 4: 0.3, 8: 0.02}[bits], error
  for path, moves in (("blocks", "mlp", "up", "quantized", "scale"), False), (("head",), True):
    assert changed.trains(("network", *path)) == moves
  query = linear_maps.get(arrays, "blocks/attention/query")["quantized"]
  numbers = 2 * 32 * 32
  assert methods.bytes_of(query) == numbers * bits // 8 + numbers // 16 * 5  # scale 4, zero 1
  made = rounded(linear_maps.get(params, "blocks/attention/query")["kernel"], options)
  np.testing.assert_allclose(kernel_of(made, options), kernel_of(query, options), atol=1e-6)


def test_products_of_integers_are_those_of_numpy():
  """To the last integer; the gradient is that of the product without rounding."""
  kernel, inputs = correlated()
  options = methods.options_of("smoothquant", 8, 0)
  arrays = rounded(np.float32(kernel), options)
  x = jnp.float32(inputs[:5])
  y, pull = jax.vjp(lambda x: integer_product(x, arrays["codes"], arrays["scale"]), x)
  step = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
  whole = np.round(np.asarray(x / step)).astype(np.int64)
  codes = np.asarray(arrays["codes"]).astype(np.int64) - 128
  np.testing.assert_allclose(y, (whole @ codes) * step * np.asarray(arrays["scale"]), rtol=1e-6)
  assert np.abs(whole).max() == 127 and 0 < np.abs(y - x @ kernel).max() < 0.05 * np.abs(y).max()
  gradient = np.random.default_rng(2).normal(size=y.shape).astype(np.float32)
  matrix = kernel_of({**arrays, "inputs": np.ones(16)}, options)
  np.testing.assert_allclose(pull(gradient)[0], gradient @ matrix.T, rtol=1e-4, atol=1e-5)
  assert (integer_product(0 * x, arrays["codes"], arrays["scale"]) == 0).all()


@pytest.mark.parametrize("scan", [True, False])
def test_inputs_are_seen_and_left_alone(float_network, scan):
  """Moment, mean, peak and count of the first layer against numpy; the network computes what it
  did."""
  network, params, want = float_network
  watching = network.like(observed=True, scan_layers=scan)
  shapes = jax.eval_shape(watching.init, jax.random.key(0))
  whole = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
  whole = _merged(whole, params)

  @jax.jit
  def run(whole):
    found = watching.apply(whole, ROWS).features
    return jnp.sum(found), found

  (_, got), gradient = jax.value_and_grad(run, has_aux=True)(whole)
  np.testing.assert_allclose(got, want, atol=2e-6)
  seen = linear_maps.statistics(gradient)
  assert seen.keys() == set(linear_maps.names_of(params))
  x = params["embedding"][np.asarray(ROWS.inputs.ids)].reshape(16, 32)
  norm = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + network.norm_eps)
  norm = norm * params["blocks"]["attention_norm"]["scale"][0]
  for name in ("query", "key", "value"):
    here = {key: each[0] for key, each in seen[f"blocks/attention/{name}"].items()}
    np.testing.assert_allclose(here["moment"], norm.T @ norm, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(here["mean"], np.abs(norm).sum(axis=0), rtol=1e-4)
    np.testing.assert_allclose(here["peak"], np.abs(norm).max(axis=0), rtol=1e-4)
    assert here["count"] == 16
  assert seen["blocks/mlp/down"]["moment"].shape == (2, 64, 64)


def test_statistics_of_two_batches_are_those_of_both():
  one, two = ({"peak": np.float32([a, 1]), "mean": np.float32([a, 1])} for a in (2, 3))
  both = together({"m": one}, {"m": two})["m"]
  assert both["peak"].tolist() == [3, 1] and both["mean"].tolist() == [5, 2]


def _merged(zeros, params):
  return {
    name: _merged(inner, params[name])
    if isinstance(inner, dict) and name in params
    else params.get(name, inner)
    for name, inner in zeros.items()
  }


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="use bits=8 and group=0"):
    Quantized(bits=4, group=0, activations="int8")
  with pytest.raises(ValueError, match="bits=4 with method='smoothquant'"):
    methods.options_of("smoothquant", 4, 64)
  with pytest.raises(ValueError, match="method='gtpq' is unknown"):
    methods.options_of("gtpq", 4, 64)
  network = small_transformer(quantized=Quantized(bits=4, group=48))
  with pytest.raises(ValueError, match="blocks/attention/key has 32 inputs, which group=48 does"):
    network.init(jax.random.key(0))
