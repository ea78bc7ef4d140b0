"""Two copies of a row over a sequence axis: the same answers, and no token changes its device."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion_text.core.mesh_axes import AXES, ROWS, TOKENS
from diffusion_text.kernels import layout as layouts
from diffusion_text.model import spans
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, Span

N = 16
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 12, (2, 2 * N)).astype(np.int32)
MEMORY = RANDOM.normal(size=(2, N, 32)).astype(np.float32)
NETWORK = small_transformer(
  **{"self_conditioning": "add", "estimate_size": 3, "first_stage_layers": 1},
  **{"window": 6, "full_layers": (1,)},
)
MOVES = ("all-to-all", "collective-permute")


def read(params, ids, memory):
  """Features of the noisy copy, of both stages and of the first layer."""
  inputs = Inputs(ids, position=layouts.noisy_clean_positions(N))
  layout = layouts.noisy_clean(N, 4)
  fields = {"copies": 2, "tokens": Span(0, N), "answers": Span(0, N)}
  rows = rows_of(inputs, 0.4, layout, weights=np.ones((2, 2 * N), np.float32), **fields)
  prediction = NETWORK.apply(params, rows, memory=memory, hidden_layers=(0,))
  return prediction.features, prediction.stages[0].features, prediction.hidden[0]


def test_copies_are_spread_over_the_sequence(monkeypatch):
  params = noisy_parameters(NETWORK)
  expected = jax.jit(read)(params, IDS, MEMORY)
  mesh = jax.make_mesh((1, 2, 1, 4, 1), AXES, axis_types=(AxisType.Auto,) * 5)
  of_rows = NamedSharding(mesh, PartitionSpec(ROWS))
  of_tokens = NamedSharding(mesh, PartitionSpec(ROWS, TOKENS[-1]))

  def compiled(read):
    where = (NamedSharding(mesh, PartitionSpec()), of_rows, of_tokens)
    step = jax.jit(read, in_shardings=where, out_shardings=of_tokens)
    return step.lower(params, IDS, MEMORY).compile()

  with jax.set_mesh(mesh):
    program = compiled(read)
    args = (params, jax.device_put(IDS, of_rows), jax.device_put(MEMORY, of_tokens))
    got = program(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected)
    assert not any(kind in program.as_text() for kind in MOVES)
    monkeypatch.setattr(spans, "parts_of", lambda rows: 1)  # a mutant: the copies as they are
    # Another function: what was traced of `read` would be used again.
    again = compiled(functools.partial(read))
    assert any(kind in again.as_text() for kind in MOVES)


@pytest.mark.parametrize("span", [Span(0, N), Span(N, 2 * N)])
def test_spreading_and_cutting_undo_each_other(span):
  rows = rows_of(Inputs(IDS), copies=2, tokens=span, answers=span)
  spread = spans.spread(rows, 4)
  x = np.float32(spread.inputs.ids)[..., None]
  expected = IDS[:, span.start : span.stop]
  np.testing.assert_array_equal(spans.answered(x, spread, 4)[..., 0], expected)
  np.testing.assert_array_equal(
    np.asarray(spread.inputs.position)[0, :8], [0, 1, 2, 3, 16, 17, 18, 19]
  )
  memory = np.float32(expected)[..., None]
  placed = spans.place(memory, np.float32([-1]), spread, 4)
  np.testing.assert_array_equal(spans.answered(placed, spread, 4), memory)
  assert (np.asarray(placed) == -1).sum() == 2 * N
