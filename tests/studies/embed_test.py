"""Sentences as vectors: pooling, retrieval and the contrastive loss by hand; no text of the search
is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.context import Full, NextToken
from diffusion_text.data.tokenizers import Bytes
from diffusion_text.model.transformer import Transformer
from diffusion_text.process.masked import Masked
from diffusion_text.studies import embed
from diffusion_text.studies.embed import Sentences, Settings, bag_of_tokens, recall_at_1, sentences
from diffusion_text.timing import AtNoise, Shared
from diffusion_text.types import Batch, DataFacts, Model, Progress

TEXTS = ["a cat", "the dog", "a cab", "no"]


def made(context, timing):
  process = Masked(vocab_size=256)
  network = Transformer(
    layers=2, width=16, heads=2, input_sizes=process.input_sizes, output_size=process.output_size
  )
  model = Model(network, process, timing, context)
  facts = DataFacts(12, 256, lambda: np.ones(256, np.int64))
  return model, embed.init(model, jax.random.key(0), facts)


@pytest.fixture(scope="module")
def masked():
  return made(Full(), Shared())


@pytest.fixture(scope="module")
def next_token():
  return made(NextToken(), AtNoise())


def vectors(model_and_params, rows, layer=1, pool="mean", level=0.0, numbers=None):
  numbers = jnp.arange(len(rows.ids)) if numbers is None else jnp.asarray(numbers)
  batch = embed.batch_of(rows)
  how = (layer,), (pool,), batch, level, numbers
  return np.asarray(embed.pooled(*model_and_params, *how)[layer, pool])


def test_the_mean_of_the_states_of_a_sentence_by_hand(masked):
  """Rows alone and without padding: the mean over tokens and end, of length 1."""
  model, params = masked
  rows = sentences(TEXTS, Bytes(), 12)
  assert rows.sizes.tolist() == [6, 8, 6, 3] and rows.ids[3, :4].tolist() == [110, 111, 10, 0]
  found = vectors(masked, rows)

  @jax.jit
  def states(params, batch):
    nothing = jnp.zeros(batch.ids.shape)
    inputs = model.process.inputs({}, batch.ids, nothing)
    read = model.context.sampling_rows(inputs, inputs, nothing, batch)
    return model.network.apply(params["network"], read, hidden_layers=(1,)).hidden[1]

  mean = np.asarray(states(params, Batch(rows.ids[:1, :6]))[0]).mean(0)
  np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=2e-5)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_noise_of_a_sentence_is_its_own(masked):
  """Under noise the vector depends on the number of the sentence, not on its batch."""
  rows = sentences(TEXTS, Bytes(), 12)
  whole = vectors(masked, rows, level=0.5)
  some = Sentences(rows.ids[[2, 0, 1, 3]], rows.sizes[[2, 0, 1, 3]])
  back = vectors(masked, some, level=0.5, numbers=[2, 0, 1, 3])
  np.testing.assert_allclose(back, whole[[2, 0, 1, 3]], atol=1e-5)
  other = vectors(masked, rows, level=0.5, numbers=[4, 5, 6, 7])
  assert np.abs(other - whole).max() > 1e-2 < np.abs(vectors(masked, rows) - whole).max()


def test_the_state_at_the_end_has_read_all_tokens(next_token):
  """ "a cat" and "a cab" differ in their last token; without the end they would be one vector."""
  rows = sentences(["a cat", "a cab"], Bytes(), 12)
  first, second = vectors(next_token, rows, pool="last")
  assert np.abs(first - second).max() > 1e-3
  cut = Sentences(rows.ids, rows.sizes - 1)  # the mutant
  first, second = vectors(next_token, cut, pool="last")
  np.testing.assert_allclose(first, second, atol=1e-6)


def test_retrieval_by_hand():
  left = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  right = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
  found = recall_at_1(left, right)
  assert found.recall == pytest.approx(1 / 3)  # the second and third are as near to both
  assert found.error == pytest.approx(np.sqrt(2 / 27))
  assert found.unrelated == pytest.approx((0.6 + 0.6 + 0.0 + 0.8 + 0.6 + 1.0) / 6)
  bags = bag_of_tokens(Sentences(np.array([[0, 1], [1, 2]]), np.array([2, 2])), 3)
  np.testing.assert_allclose(bags, [[1, 0, 0], [0, 0, 1]])  # 1 is in both, and says nothing


def test_the_contrastive_loss_by_hand_and_its_updates(masked):
  """Both directions; pairs are learned, and nothing but the network moves."""
  model, params = masked
  settings = Settings(length=12, tune_steps=12, tune_rate=3e-3, batch_size=4)
  groups = [["a cat", "one cat"], ["the dog", "that hound"], ["no", "never"], ["why", "what for"]]
  batches = embed.pairs_of(groups, Bytes(), settings)
  batch = next(batches)
  args = (model, 1, "mean", 0.05, params, {}, jax.random.key(0), batch, Progress())
  loss_of = jax.jit(embed.contrastive_loss, static_argnums=(0, 1, 2, 3))
  loss = loss_of(*args)
  rows = Sentences(np.asarray(batch.ids), np.asarray(batch.weights).sum(1).astype(int))
  both = vectors(masked, rows)
  logits = both[:4] @ both[4:].T / 0.05
  by_hand = sum(
    np.log(np.exp(side).sum(1)) - np.diagonal(side) for side in (logits, logits.T)
  ).sum()
  assert float(loss.total) == pytest.approx(by_hand / 2, rel=1e-4) and float(loss.count) == 4
  after = embed.tuned(model, params, batches, settings, layer=1, pool="mean")
  changed = args[:4] + (after,) + args[5:]
  assert float(loss_of(*changed).total) < 0.5 * float(loss.total)
  assert after["process"] == params["process"]


def test_no_text_of_the_search_is_trained_on(tmp_path):
  lines = [f"sentence {n} {way}\tphrase {n}" for n in range(8) for way in ("one", "two")]
  lines += ["alone\tseule", "sentence 0 one\tphrase 7"]
  (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
  path, settings = str(tmp_path / "pairs.txt"), Settings(candidates=3)
  searched, tuning, plain = embed.texts_of(path, settings)
  hidden = {text for group in searched for text in group}
  assert len(searched) == 3 and all(len(group) > 1 for group in [*searched, *tuning])
  assert not hidden & {text for group in tuning for text in group} and not hidden & set(plain)
  assert "alone" in plain and len(plain) + len(hidden) == 17
  with pytest.raises(ValueError, match=r"8 groups of sentences.*--candidates=7 leaves none"):
    embed.texts_of(path, Settings(candidates=7))
  with pytest.raises(ValueError, match=r"--path=none.txt is not there"):
    embed.pivot_groups("none.txt")
  (tmp_path / "few.txt").write_text("a\tb\n")
  with pytest.raises(ValueError, match="has no two sentences with one translation"):
    embed.pivot_groups(tmp_path / "few.txt")


def test_a_small_study(tmp_path):
  """All lines are there, and the file of numbers."""
  words = [f"{a}{b} went to the {c}" for a in "bdfg" for b in "aeiou" for c in ("sea", "inn")]
  lines = [f"{way} {word}\t{word}!" for word in words for way in ("she", "he")]
  (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
  small = {
    "batch_size": 8,
    "layers": 1,
    "width": 32,
    "steps": 2,
    "tune_steps": 2,
    "candidates": 10,
    "length": 32,
  }
  settings = Settings(vocab_size=300, levels=(0.0, 0.5), **small)
  text = embed.run(str(tmp_path / "pairs.txt"), settings, tmp_path / "out")
  names = [line.split(" | ")[0].strip("| ") for line in text.splitlines()[2:]]
  assert names.count("autoregressive") == 3 and names.count("masked") == 5
  assert names.count("untrained") == 5 and names[0] == "bag of tokens"
  assert (tmp_path / "out" / "embed.json").exists() and text.count("%") == len(names)
