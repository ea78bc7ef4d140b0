"""The transformer: what it may see, what must not matter, and what every option does."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full
from diffusion_text.model import MODELS
from diffusion_text.model.first_stage import FirstStage, expected_embedding
from diffusion_text.model.flops import attention_flops, flops_per_token
from diffusion_text.model.partition import TABLE, decays, partition_spec
from diffusion_text.model.transformer import Transformer
from diffusion_text.testing.small_transformer import noisy_parameters, rows_of, small_transformer
from diffusion_text.types import Inputs, InputSizes, Layout, Model, Span

VARIANTS = {
  "plain": {},
  "grouped": {"kv_heads": 2},
  "qk_norm": {"qk_norm": True},
  "swiglu": {"activation": "swiglu"},
  "layernorm": {"norm": "layernorm"},
  "tied": {"tie_embeddings": True},
  "adaln": {"time_conditioning": "adaln", "time_in_head": True, "time_signal": "loglinear"},
  "layerwise": {"time_conditioning": "layerwise"},
  "two stages": {"first_stage_layers": 1},
  "experts": {"experts": 4, "experts_per_token": 2, "expert_width": 32, "shared_width": 16},
  "bfloat16": {"dtype": "bfloat16"},
  "norms after branches": {
    **{"norm": "layernorm", "norm_bias": True, "norm_place": "after", "embedding_norm": True},
    **{"positions": "learned", "max_positions": 10, "token_types": 2, "attention_bias": "all"},
    **{"mlp_bias": True, "activation": "gelu_exact", "tie_embeddings": True, "head_bias": True},
    **{"head_transform": True, "unanswered": (3,)},
  },
  "wide heads": {"head_width": 10, "attention_bias": "qkv", "head_bias": False, "qk_norm": True},
}
IDS = np.random.default_rng(5).integers(0, 12, (3, 10)).astype(np.int32)
PLACE = np.broadcast_to(np.arange(10, dtype=np.int32), IDS.shape)
ALIKE = np.zeros_like(IDS)


def names_of(path):
  return tuple(part.key for part in path)


def reader(network):
  """(params, ids, segment, block) -> (logits, features, logits of some features), compiled."""

  @jax.jit
  def read(params, ids, segment, block):
    prediction = network.apply(params, rows_of(Inputs(ids), layout=Layout(segment, block)))
    return prediction.logits, prediction.features, prediction.head(prediction.features[1, 2:5])

  return read


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(variant):
  """Shapes; nobody sees its right in a causal row, or another document; scanning is the same."""
  network = small_transformer(**VARIANTS[variant])
  assert all(
    leaf.dtype == jnp.float32
    for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
  )
  params, read = noisy_parameters(network), reader(network)
  logits, _, some = read(params, IDS, ALIKE, ALIKE)
  assert logits.shape == (3, 10, 11) and logits.dtype == jnp.float32
  np.testing.assert_allclose(some, logits[1, 2:5], atol=1e-5)

  base = np.asarray(read(params, IDS, ALIKE, PLACE)[0])
  sees = []
  for other in range(10):
    ids = IDS.copy()
    ids[:, other] = (ids[:, other] + 1) % 12
    change = np.abs(np.asarray(read(params, ids, ALIKE, PLACE)[0]) - base)
    sees.append(change.max(axis=(0, 2)) > 1e-6)
  sees = np.array(sees)  # [changed, read]
  assert not sees[np.tril_indices(10, -1)].any(), "a token is seen by one on its left"
  assert sees[np.triu_indices(10)].all(), "a token is not seen by one on its right"

  segment = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0]] * 3, np.int32)
  other = IDS.copy()
  other[:, 4:] = 3
  first, second = (np.asarray(read(params, ids, segment, ALIKE)[0]) for ids in (IDS, other))
  np.testing.assert_array_equal(first[:, :4], second[:, :4])
  assert np.abs(first - second)[:, 4:].max() > 1e-3

  tolerance = 0.05 if variant == "bfloat16" else 2e-5
  for change in ({"remat": "full"}, {"remat": "dots", "scan_layers": True}):
    again = reader(network.like(**change))(params, IDS, ALIKE, PLACE)[0]
    np.testing.assert_allclose(again, base, atol=tolerance)


def test_defaults_need_the_sizes_of_the_process_only():
  network = MODELS["transformer"](width=256, layers=6, input_sizes=InputSizes(12), output_size=11)
  assert network.sizes == (4, 4, 64, 1024)
  assert network == Transformer(layers=6, input_sizes=InputSizes(12), output_size=11)
  assert hash(network) == hash(network.like()) and network.like(width=64).sizes == (1, 1, 64, 256)


def test_answers_are_cut_by_the_network():
  """Features, stages and hidden layers of the answered positions only; the rest is as it was."""
  network = small_transformer(layers=3, first_stage_layers=2)
  params = noisy_parameters(network)

  @jax.jit
  def read(params, ids):
    spans = (Span(0, 10), Span(3, 7), Span(4, 4))
    return [
      network.apply(params, rows_of(Inputs(ids), answers=span), hidden_layers=(0, 1, 2))
      for span in spans
    ]

  whole, some, none = read(params, IDS)

  def parts(prediction):
    return prediction.features, prediction.stages[0].features, prediction.hidden

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[:, 3:7], b, atol=5e-6), parts(whole), parts(some)
  )
  assert none.features.shape == (3, 0, 32) and set(none.hidden) == {0, 1, 2}
  np.testing.assert_array_equal(jax.jit(lambda p: p.logits)(whole).shape, (3, 10, 11))


def test_hidden_layers_are_the_streams_between_layers():
  """The last one before the final norm; a network cut after a layer ends with it."""
  network = small_transformer(layers=3, time_conditioning="prefix")
  params = noisy_parameters(network)

  def run(network, params, layers):
    return network.apply(params, rows_of(Inputs(IDS)), hidden_layers=layers)

  run = jax.jit(run, static_argnums=(0, 2))
  short = params | {"blocks": jax.tree.map(lambda leaf: leaf[:2], params["blocks"])}
  cut = run(network.like(layers=2), short, (1,)).hidden[1]
  for scan in (False, True):
    prediction = run(network.like(scan_layers=scan), params, (1, 2))
    hidden = prediction.hidden
    assert sorted(hidden) == [1, 2]
    last = np.asarray(hidden[2])
    normed = last / np.sqrt((last**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(
      normed * params["final_norm"]["scale"], prediction.features, atol=1e-4
    )
    np.testing.assert_allclose(cut, hidden[1], atol=1e-4)
  with pytest.raises(ValueError, match=r"hidden_layers=\(3,\) must be layers of 0 … 2"):
    network.apply(params, rows_of(Inputs(IDS)), hidden_layers=(3,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_soft_tokens_of_one_token_are_that_token(dtype):
  """All weight on one of three tokens, whatever the others are: bitwise the hard token."""
  network = small_transformer(dtype=dtype)
  params = noisy_parameters(network)
  ids = np.stack([(IDS + 3) % 12, IDS, (IDS + 5) % 12], axis=-1)
  weights = np.broadcast_to(np.float32([0, 1, 0]), ids.shape)

  @jax.jit
  def both(params):
    inputs = (Inputs(ids, weights=weights), Inputs(IDS))
    return [network.apply(params, rows_of(each)).features for each in inputs]

  np.testing.assert_array_equal(*both(params))


def test_soft_tokens_over_the_whole_vocabulary_are_the_dense_product():
  """Softmax weights over all ids equal vectors of these shares, and every id gets a gradient."""
  network = small_transformer(input_sizes=InputSizes(30))
  params = noisy_parameters(network)
  weights = np.random.default_rng(2).dirichlet(np.ones(30), (3, 10)).astype(np.float32)
  ids = np.broadcast_to(np.arange(30), weights.shape)

  @jax.jit
  def both(params):
    def soft(params):
      features = network.apply(params, rows_of(Inputs(ids, weights=weights))).features
      return jnp.sum(features**2 * 0.01), features

    dense = network.like(input_sizes=InputSizes(0, 30))
    features = dense.apply(params, rows_of(Inputs(vectors=weights))).features
    return *jax.grad(soft, has_aux=True)(params), features

  gradient, soft, dense = both(params)
  np.testing.assert_allclose(soft, dense, atol=1e-4)
  assert (np.abs(gradient["embedding"]).max(axis=1) > 1e-6).all(), "an id gets no gradient"


def test_channels_are_summed():
  """Ids and vectors of a joint state: one table each, and both count."""
  network = small_transformer(input_sizes=InputSizes(12, 5), layers=1)
  params = noisy_parameters(network, 0.5)
  vectors = np.random.default_rng(3).normal(size=(3, 10, 5)).astype(np.float32)
  assert params["embedding"].shape == (12, 32) and params["vector_embedding"].shape == (5, 32)
  embedded = params["embedding"][IDS] + vectors @ params["vector_embedding"]
  plain = small_transformer(input_sizes=InputSizes(30), layers=1)
  table = params | {"embedding": embedded.reshape(30, 32)}
  table.pop("vector_embedding")
  ids = np.arange(30).reshape(3, 10)
  expected = jax.jit(plain.apply)(table, rows_of(Inputs(ids))).features
  got = jax.jit(network.apply)(params, rows_of(Inputs(ids=IDS, vectors=vectors))).features
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_wide_table_lets_later_layers_read_the_token():
  """What the first layer adds is as large as ever: at 0.02 little of the stream behind it is the
  token and its place, and the heads of the second layer find no token to look for."""

  def of_the_token(std):
    network = small_transformer(embedding_std=std, width=64, positions="learned", max_positions=10)
    params = jax.jit(network.init)(jax.random.key(0))
    for table in (params["embedding"], params["position"]["embedding"]):
      np.testing.assert_allclose(table.std(), std, rtol=0.2)
    apply = jax.jit(functools.partial(network.apply, hidden_layers=(0,)))
    hidden = apply(params, rows_of(Inputs(IDS))).hidden[0]
    token = params["embedding"][IDS] + params["position"]["embedding"]
    size = np.linalg.norm(hidden, axis=-1) * np.linalg.norm(token, axis=-1)
    return float(np.mean(np.sum(hidden * token, axis=-1) / size))

  assert of_the_token(0.02) < 0.5 and of_the_token(1.0) > 0.9


def test_inputs_that_do_not_fit_are_refused():
  network = small_transformer()
  params = noisy_parameters(network)
  for inputs in (Inputs(IDS[..., None]), Inputs(IDS, weights=np.ones((3, 10, 1)))):
    with pytest.raises(ValueError, match=r"do not fit; give ids \[B, L\]"):
      network.apply(params, rows_of(inputs))
  with pytest.raises(ValueError, match="vectors of 7 numbers do not fit a table of 12"):
    network.apply(params, rows_of(Inputs(vectors=np.ones((3, 10, 7), np.float32))))


def test_dropout_needs_a_key():
  network = small_transformer(dropout=0.5)
  params = noisy_parameters(network)
  read = jax.jit(lambda key: network.apply(params, rows_of(Inputs(IDS)), key=key).features)
  quiet = jax.jit(lambda net: net.apply(params, rows_of(Inputs(IDS))).features, static_argnums=0)
  np.testing.assert_array_equal(quiet(network), quiet(network.like(dropout=0.0)))
  first, again, other = (np.asarray(read(jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("branch,last", [("attention", "out"), ("mlp", "down")])
def test_dropout_in_one_branch_is_in_no_other(branch, last):
  """Where what the branch adds is 0 nothing is dropped; in the other branch something is."""

  def dropped(where):
    network = small_transformer(dropout=0.5, dropout_in=where)
    params = noisy_parameters(network)
    silent = jax.tree_util.tree_map_with_path(
      lambda path, leaf: 0 * leaf if {branch, last} <= {*names_of(path)} else leaf, params
    )
    ask = jax.jit(lambda key: network.apply(silent, rows_of(Inputs(IDS)), key=key).features)
    return np.abs(ask(jax.random.key(0)) - ask(jax.random.key(1))).max() > 1e-3

  assert not dropped(branch) and dropped("mlp" if branch == "attention" else "attention")


def test_positions_are_relative():
  """Rotary attention sees differences of positions only: shifting all of them changes nothing."""
  network = small_transformer()
  params = noisy_parameters(network)
  at = jax.jit(
    lambda position: network.apply(params, rows_of(Inputs(IDS, position=position))).logits
  )
  row = np.arange(10, dtype=np.int32)[None]
  np.testing.assert_allclose(at(row), at(row + 1000), atol=5e-3)
  assert np.abs(np.asarray(at(row) - at(3 * row))).max() > 5e-2
  default = jax.jit(network.apply)(params, rows_of(Inputs(IDS))).logits
  np.testing.assert_allclose(at(row), default, atol=1e-4)


def test_ids_that_are_never_answered():
  """Their probability is 0 exactly, and that of the others is what it is among themselves."""
  network, changed = small_transformer(), small_transformer(unanswered=(2, 7))
  params = noisy_parameters(network)
  read = jax.jit(lambda net: net.apply(params, rows_of(Inputs(IDS))).logits, static_argnums=0)
  plain, logits = np.asarray(read(network)), np.asarray(read(changed))
  others = np.delete(np.arange(11), [2, 7])
  np.testing.assert_array_equal(plain[..., others], logits[..., others])
  assert (np.asarray(jax.nn.softmax(logits))[..., [2, 7]] == 0).all()


def test_learned_positions_are_rows_of_a_table():
  """An offset reads the rows after it; a row that is longer than the table is refused."""
  network = small_transformer(positions="learned", max_positions=12)
  params = noisy_parameters(network)
  read = jax.jit(
    lambda net, at: net.apply(params, rows_of(Inputs(IDS, position=at))).logits, static_argnums=0
  )
  row = np.arange(10, dtype=np.int32)[None]
  moved = read(network.like(position_offset=1), row - 1)
  np.testing.assert_array_equal(moved, read(network, row))
  assert np.abs(np.asarray(read(network, row + 1) - moved)).max() > 1e-3
  default = jax.jit(network.apply)(params, rows_of(Inputs(IDS))).logits
  np.testing.assert_allclose(default, moved, atol=1e-5)
  long = rows_of(Inputs(np.zeros((1, 13), np.int32)))
  with pytest.raises(ValueError, match=r"13 positions are more than the model.max_positions=12"):
    jax.eval_shape(network.apply, params, long)
  with pytest.raises(ValueError, match=r"13 tokens of a row are more than model.max_positions=12"):
    network.cache(params, long, 13)
  model = Model(network, None, None, Full())
  with pytest.raises(ValueError, match=r"data.length=13 is more than model.max_positions=12"):
    network.check(model, types.SimpleNamespace(length=13, packing="stream"))


@pytest.mark.parametrize(
  "change,match",
  [
    ({"heads": 5}, "heads=5"),
    ({"kv_heads": 3}, "kv_heads=3"),
    ({"norm": "batchnorm"}, "batchnorm"),
    ({"dropout": 1.0}, r"less than 1"),
    ({"dtype": "float16"}, "float16"),
    ({"remat": "some"}, "some"),
    ({"time_conditioning": "film"}, "film"),
    ({"attention": ("splash",)}, "splash"),
    ({"first_stage_layers": 2}, "first_stage_layers=2 must be below layers=2"),
    ({"first_stage_layers": -1}, "greater than or equal to 0"),
    ({"tie_embeddings": True, "output_size": 13}, "tie_embeddings=True needs a row"),
    ({"experts_per_token": 2}, "experts=0 has no use for any of experts_per_token"),
    ({"experts": 2, "experts_per_token": 3, "expert_width": 8}, "experts_per_token=3"),
    ({"experts": 2, "experts_per_token": 1}, "expert_width=0"),
    ({"self_conditioning": "add"}, "estimate_size=0"),
    ({"absent": "uniform"}, "absent='uniform' is read by a network"),
    (
      {"self_conditioning": "add", "absent": "uniform", "estimate_size": 4},
      "a distribution over 11 tokens, and an estimate here has 4 numbers",
    ),
    ({"self_conditioning": "mean", "estimate_size": 13}, "by a table of 12 rows; use 'add'"),
    ({"input_sizes": InputSizes()}, "must be positive"),
    ({"head_width": 7}, "head_width=7 must be even"),
    ({"norm_bias": True}, "norm_bias=True is for norm='layernorm'"),
    ({"norm_place": "after", "time_conditioning": "adaln"}, "norm_place='after' with time_cond"),
    ({"norm_place": "after", "first_stage_layers": 1}, "with first_stage_layers=1, whose"),
    ({"positions": "learned"}, "max_positions=0 must be above position_offset=0"),
    ({"max_positions": 5}, "max_positions=5 and position_offset=0 are read with"),
    ({"time_in_head": True}, "is a part of time_conditioning='adaln', and it is 'none'"),
    ({"time_signal": "time"}, "time_signal='time' is read by a network that reads the time"),
    (
      {"time_conditioning": "adaln", "time_signal": "geometric", "time_sigmas": (1.0, 0.5)},
      r"time_sigmas=\(1.0, 0.5\) must rise from above 0",
    ),
    (
      {"time_conditioning": "adaln", "time_sigmas": (1e-3, 5.0)},
      r"time_sigmas=\(0.001, 5.0\) are read with time_signal='geometric', and it is 'thousands'",
    ),
    ({"unanswered": (11,)}, r"unanswered=\(11,\) must be ids of 0 … 10"),
    ({"unanswered": tuple(range(11))}, "leaves no id to answer with"),
    ({"unanswered": (1,), "first_stage_layers": 1}, "whose head answers every id"),
    (
      {"experts": 2, "experts_per_token": 1, "expert_width": 8, "mlp_bias": True},
      "experts=2 have no biases",
    ),
  ],
)
def test_bad_options_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    small_transformer(**change)


@pytest.mark.parametrize(
  "change",
  [
    {"width": 64, "heads": 2, "time_conditioning": "adaln", "time_in_head": True},
    {"width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 14336, "activation": "swiglu"},
    {"time_conditioning": "layerwise", "input_sizes": InputSizes(1024, 64)},
    {"time_conditioning": "prefix"},
    {"head_transform": True, "positions": "learned", "max_positions": 64},
    {
      **{"experts": 4, "experts_per_token": 2, "expert_width": 8, "shared_width": 8},
      **{"activation": "swiglu"},
    },
  ],
  ids=["micro", "8b", "joint", "prefix", "transform", "experts"],
)
def test_every_matrix_is_placed_and_decays(change):
  """Every matrix is named by the table, splits where it divides, and decays unless it embeds."""
  options = {"width": 64, "input_sizes": InputSizes(1024), "output_size": 1024}
  network = Transformer(**(options | {"layers": 3, "first_stage_layers": 1} | change))
  endings = {ending for ending, _ in TABLE}
  mesh = {"fsdp": 2, "tensor": 2, "expert": 2}
  whole = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    jax.eval_shape(network.init, jax.random.key(0))
  ):
    names = names_of(path)
    table = names[-1] in ("embedding", "vector_embedding")
    expert = names[-1] in ("up", "gate", "down")
    matrix = names[-1] == "kernel" or table or expert
    assert decays(names) == (names[-1] in ("kernel", "router") or expert), names
    if matrix and "time" not in names:
      assert any(names[-len(ending) :] == ending for ending in endings), names
      spec = partition_spec(names, leaf.shape, {"fsdp": 2, "tensor": 2})
      assert any(axis is not None for axis in spec), (names, spec)
    if "mlp" in names:
      spec = partition_spec(names, leaf.shape, mesh)
      axes = {
        axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())
      }
      whole += [] if axes == set(mesh) else [names[-1]]
    assert partition_spec(names, leaf.shape, {"fsdp": 1}) == partition_spec(names, leaf.shape, {})
  assert whole == (["router"] if "experts" in change else [])


@pytest.mark.parametrize(
  "change",
  [{}, {"first_stage_layers": 1}, {"head_width": 64, "head_transform": True, "mlp_bias": True}],
  ids=["plain", "two stages", "wide heads"],
)
def test_flops_agree_with_the_compiler(change, monkeypatch):
  """Our count of a forward pass against XLA's own, unrolled (a loop's body would count once)."""

  def at_once(self, answer):
    return expected_embedding((answer.head, self.embedding[...]), answer.features)

  monkeypatch.setattr(FirstStage, "read", at_once)
  sizes = {"width": 128, "kv_heads": 2, "mlp_width": 512, "input_sizes": InputSizes(513)}
  network = small_transformer(output_size=512, **sizes, **change)
  params = jax.eval_shape(network.init, jax.random.key(0))
  ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)

  def run(params, ids):
    return network.apply(params, rows_of(Inputs(ids), answers=Span(0, 32))).logits

  counted = jax.jit(run).lower(params, ids).compile().cost_analysis()["flops"]
  # A noisy and a clean copy of 32 tokens: 64 positions are read, 32 answered.
  ours = flops_per_token(network, 32, read=64, answered=32)
  assert ours * 2 * 32 == pytest.approx(counted, rel=0.05)
  assert attention_flops(network, 32, read=64) == 3 * attention_flops(network, 32, read=32)
