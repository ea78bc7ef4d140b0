"""Mixtures of experts: against a loop, the losses of the router by hand, padding, and for TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import base
from diffusion_text.compiler.hlo import Program
from diffusion_text.compiler.topology import topology_devices
from diffusion_text.core.mesh_axes import AXES
from diffusion_text.kernels.block_sizes import compile_for
from diffusion_text.model.experts import mixture, own_experts, routing
from diffusion_text.model.flops import expert_flops, flops_per_token
from diffusion_text.studies.benchmark_experts import every_expert, measure_config, measure_experts
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, Layout

T, D, F, N, K = 7, 6, 5, 4, 2


def loop(x, share, expert, up, gate, down):
  """One token at a time, one of its experts at a time, in float64."""

  def silu(a):
    return a / (1 + np.exp(-a))

  out = np.zeros((T, D))
  for t in range(T):
    for j in range(K):
      if 0 <= (e := expert[t, j]) < len(up):
        out[t] += share[t, j] * ((silu(x[t] @ gate[e]) * (x[t] @ up[e])) @ down[e])
  return out


@pytest.mark.parametrize("shift", [0, 2], ids=["all", "part"])
def test_experts_equal_the_loop(shift):
  """Also where some of the experts are on other devices (numbers out of range)."""
  random = np.random.default_rng(0)

  def draw(*shape):
    return random.normal(size=shape).astype(np.float32)

  x, share, up, gate, down = draw(T, D), draw(T, K), draw(N, D, F), draw(N, D, F), draw(N, F, D)
  expert = np.stack([random.permutation(N)[:K] for _ in range(T)]).astype(np.int32) - shift

  def result(x, share, *weights):
    return own_experts(x, share, expert, *weights)

  def total(*args):
    return jnp.sum(result(*args))

  args = (x, share, up, gate, down)
  both = jax.jit(lambda *args: (result(*args), jax.grad(total, range(5))(*args)))
  out, grads = both(*args)
  old = jax.jit(lambda *args: every_expert(args[0], args[1], expert, *args[2:]))(*args)
  np.testing.assert_allclose(out, old, atol=1e-5)
  np.testing.assert_allclose(out, loop(x, share, expert, up, gate, down), atol=2e-5)
  moves = [1e-4 * np.float64(draw(*a.shape)) for a in args]
  # Each gradient against a central difference of the loop, in one direction.
  for number, (grad, move) in enumerate(zip(grads, moves)):
    there, back = [list(args), list(args)]
    there[number], back[number] = args[number] + move, args[number] - move
    slope = (
      loop(*there[:2], expert, *there[2:]).sum() - loop(*back[:2], expert, *back[2:]).sum()
    ) / 2e-4
    np.testing.assert_allclose(np.sum(move * np.asarray(grad)) * 1e4, slope, rtol=1e-4, atol=1e-4)
  if shift:
    assert np.abs(np.asarray(grads[2])[N - shift :]).max() == 0  # nobody chose those


def test_losses_of_the_router():
  """Even choice costs 1 whatever N and k, one expert for all costs N; z is the squared log-sum-exp;
  padding counts nowhere."""
  logits = np.full((1, 4, N), -20.0, np.float32)
  logits[0, np.arange(4), np.arange(4)] = 20.0  # token i is sure of expert i

  def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

  chosen, t = np.arange(4)[None, :, None], np.float32([[0, 0.1, 0.25, 0.9]])
  even = routing(logits, softmax(logits), chosen, None, t)
  np.testing.assert_allclose([even.balance, even.z], [1.0, 400.0], rtol=1e-5)
  # One clean token, two in the first quarter on different experts, none in the next two, one last.
  np.testing.assert_allclose(even.load, [N, N / 2, 0, 0, N], rtol=1e-5)
  counted = np.array([[0.0, 1.0, 0.0, 0.0]], np.float32)
  one = routing(logits, softmax(logits), chosen, counted, t)
  np.testing.assert_allclose(one.balance, N, rtol=1e-5)
  np.testing.assert_allclose(one.load, [0, N, 0, 0, 0], rtol=1e-5)
  for nothing in routing(logits, softmax(logits), chosen, 0 * counted, t):
    np.testing.assert_allclose(nothing, 0.0)


def test_a_network_of_experts():
  """What padding holds reaches neither the tokens nor the losses, which are weighted; a token costs
  its own experts, not all of them."""
  options = {"experts": 4, "experts_per_token": 2, "expert_width": 32}
  network = small_transformer(**options, balance_weight=1.0, router_z_weight=0.5)
  params = noisy_parameters(network)
  weights = np.array([[1, 1, 1, 0]], np.float32)
  layout = Layout(segment=np.int32(1 - weights))

  @functools.partial(jax.jit, static_argnums=0)
  def read(network, ids, weights):
    rows = rows_of(Inputs(ids), 1.0, layout, weights=weights)
    prediction = network.apply(params, rows)
    return prediction.features[:, :3], prediction.losses

  ids, other = (np.array([[1, 2, 3, padding]], np.int32) for padding in (4, 5))
  features, losses = read(network, ids, weights)
  again, same = read(network, other, weights)
  np.testing.assert_allclose(features, again, atol=1e-5)
  assert set(losses) == {"router_balance", "router_z"}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), losses, same)
  counted = read(network, ids, np.ones_like(weights))[1]
  assert abs(counted["router_z"] - losses["router_z"]) > 1e-4  # padding that counts is a mistake
  lighter = read(network.like(balance_weight=0.25, router_z_weight=0.0), ids, weights)[1]
  np.testing.assert_allclose(lighter["router_balance"] * 4, losses["router_balance"], rtol=1e-5)
  assert lighter["router_z"] == 0
  router = 2 * network.layers * network.width * 4
  cost = functools.partial(flops_per_token, length=4, read=4, answered=4)
  assert cost(network.like(experts=8)) - cost(network) == router
  half = cost(network) - cost(network.like(experts_per_token=1))
  assert expert_flops(network, 4, read=4) == 2 * half > 0


def test_experts_compile_for_tpu_over_their_axis():
  """Forward and backward, experts over one axis, their width over another: results are summed, and
  no weight is gathered.
  """
  pytest.importorskip("libtpu", reason="pip install libtpu to compile for TPU without one")
  devices = np.array(topology_devices("v5e:2x2")).reshape(1, 1, 2, 1, 2)
  mesh = Mesh(devices, AXES)

  def shape(spec, dtype, *sizes):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

  bf16, weights = jnp.bfloat16, ("expert", None, "tensor")
  x, chosen = shape((), bf16, 2, 128, 256), shape((), jnp.int32, 2, 128, 2)
  up, down = shape(weights, bf16, 4, 256, 256), shape(("expert", "tensor", None), bf16, 4, 256, 256)

  def loss(x, share, up, gate, down, chosen):
    return jnp.sum(mixture(x, share, chosen, up, gate, down).astype(jnp.float32) ** 2)

  with jax.set_mesh(mesh), compile_for("tpu", "TPU v5 lite"):
    step = jax.jit(jax.grad(loss, range(5)))
    program = Program(
      step.lower(x, shape((), bf16, 2, 128, 2), up, up, down, chosen).compile().as_text()
    )
  assert {c.kind for c in program.collectives()} == {"all-reduce"}


def test_benchmark_of_experts():
  """A way that passes fewer experts does less, and a config without experts is refused."""
  one, both = measure_experts(16, 4, 4, experts=2, rounds=1)
  assert [one["per_token"], both["per_token"]] == [1, 2]
  assert one["work_of_every_expert"] > 1 == both["work_of_every_expert"]
  with pytest.raises(ValueError, match=r"model\.experts.*configs/llada_moe\.py:tiny"):
    measure_config(base.config("micro"), rounds=1)
