"""The last layer of rows with a noisy and a clean copy: it computes the answered tokens alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.compiler.hlo import Program
from diffusion_text.kernels import layout as layouts
from diffusion_text.model.block import Shared
from diffusion_text.model.flops import flops_per_token
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, Span

N = 8
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 12, (2, 2 * N)).astype(np.int32)
TIMES = np.concatenate([RANDOM.uniform(size=(2, N)), np.zeros((2, N))], 1).astype(np.float32)
WEIGHTS = RANDOM.normal(size=(2, N, 11)).astype(np.float32)
NETWORKS = {
  "times": {"time_conditioning": "adaln", "time_in_head": True, "kv_heads": 2},
  "window": {"window": 3, "full_layers": (0,), "activation": "swiglu"},
  "after": {
    **{"norm": "layernorm", "norm_place": "after", "positions": "learned", "max_positions": N},
    **{"layers": 1, "time_conditioning": "layerwise", "head_transform": True},
  },
}


def compiled(network, whole):
  """(loss and gradient as a program, how many FLOPs its products take). whole: every position is
  answered, and the loss reads the noisy copy."""

  def loss(params):
    answers = Span(0, 2 * N if whole else N)
    inputs = Inputs(IDS, position=layouts.noisy_clean_positions(N))
    fields = {"copies": 2, "tokens": Span(0, N), "answers": answers}
    rows = rows_of(inputs, TIMES, layouts.noisy_clean(N, 4), **fields)
    prediction = network.apply(params, rows)
    return jnp.sum(prediction.head(prediction.features[:, :N]) * WEIGHTS)

  params = noisy_parameters(network)
  program = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
  return program(params), Program(program.as_text()).matmul_flops()


@pytest.mark.parametrize("name", NETWORKS)
def test_same_loss_and_gradient_by_less_work(name):
  """As where every position is answered, by at least the FLOPs less that the formula says."""
  network = small_transformer(**NETWORKS[name])
  expected, work = compiled(network, whole=True)
  got, less = compiled(network, whole=False)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)

  def formula(length):  # of a forward and a backward pass of two rows, but for the head
    return 3 * 2 * length * flops_per_token(network, length, read=2 * N, answered=0)

  # At least: the compiler makes some scores of each query twice.
  assert work - less >= formula(2 * N) - formula(N) > 0


def test_a_mutant_that_asks_as_the_clean_copy_is_found(monkeypatch):
  network = small_transformer(**NETWORKS["after"])
  expected, _ = compiled(network, whole=True)
  queries = Shared.of_queries

  def clean(self):
    own = queries(self)
    return own._replace(layout=jax.tree.map(lambda ids: ids[:, N:], self.layout))

  monkeypatch.setattr(Shared, "of_queries", clean)
  got, _ = compiled(network, whole=False)
  assert abs(got[0] - expected[0]) > 1e-2
