"""The adapter of lm_eval: its numbers are those of the formula of the network, and of evaluate."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs the package safetensors (extra: pretrained)")
pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

from diffusion_text.experiment import run as runs
from diffusion_text.experiment.continuations import request
from diffusion_text.experiment.until import opened
from diffusion_text.studies import lm_eval_adapter
from diffusion_text.studies.lm_eval_adapter import Adapter, model_args
from tests.conftest import ROOT
from tests.model.pretrained import reference
from tests.studies import instruction_models

LAMBADA = ROOT.parent / "shared" / "data" / "lambada" / "lambada_test.jsonl"
PAIRS = [("It was the", " best"), ("", "It was"), ("It was ", "the worst of times"), ("of", " the")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("lm_eval")


@pytest.fixture(scope="module")
def next_token(place):
  """(workdir, ids -> log-probabilities [n, V] of each next token by the formula of the family)."""
  workdir, tensors, config = instruction_models.workdir_of(place, "llama")

  def log_probs(ids):
    row = np.array([[0, *ids]])  # the token that begins texts
    return np.log(reference.softmax(reference.llama(tensors, config, row)[0]))

  return workdir, log_probs


@pytest.fixture(scope="module")
def masked(place):
  return instruction_models.workdir_of(place, "llada")[0]


@pytest.fixture(scope="module")
def exact(next_token):
  return Adapter(workdir=next_token[0], batch_size=4)


@pytest.fixture(scope="module")
def bound(masked):
  return Adapter(workdir=masked, num_draws=8, timing="exact_count", batch_size=8, steps=4)


def asked(*args):
  return [SimpleNamespace(args=each) for each in args]


def by_formula(adapter, log_probs, context, continuation):
  """(log p(continuation | context), whether it is the likeliest token by token)."""
  encode = adapter.experiment.tokenizer.encode
  whole, start = encode(context + continuation), len(encode(context.rstrip()))
  laws = log_probs(whole)[np.arange(start, len(whole))]
  best = bool((laws.argmax(1) == whole[start:]).all())
  return laws[np.arange(len(laws)), whole[start:]].sum(), best


def greedy_text(adapter, log_probs, context, tokens):
  """What the formula writes."""
  ids = adapter.experiment.tokenizer.encode(context).tolist()
  start = len(ids)
  for _ in range(tokens):
    law = log_probs(ids)[-1]
    ids.append(int(law.argmax()))
  return adapter.experiment.tokenizer.decode(np.array(ids[start:]))


def test_next_tokens_by_the_formula_of_the_family(exact, next_token):
  """log p to rounding, and is_greedy: the likeliest token alone is."""
  log_probs = next_token[1]
  found = exact.loglikelihood(asked(*PAIRS))
  wanted = [by_formula(exact, log_probs, *pair) for pair in PAIRS]
  np.testing.assert_allclose([f[0] for f in found], [w[0] for w in wanted], rtol=2e-4)
  assert [f[1] for f in found] == [w[1] for w in wanted]
  assert [each.standard_error for each in exact.scores] == [0.0] * 4
  assert exact.get_model_info()["log_probabilities"] == "exact"
  context = exact.experiment.tokenizer.encode("It was")
  best = np.array([log_probs(context)[-1].argmax()], np.int32)
  hits = exact._scorer.score([request(context, best), request(context, best + 1)], greedy=True)
  assert [each.greedy for each in hits] == [True, False]


@pytest.mark.parametrize("kind", ["exact", "bound"])
def test_a_whole_text_scores_as_evaluate_has_it(kind, request):
  """The exact one to rounding; the bound within its error over other draws."""
  adapter = request.getfixturevalue(kind)
  adapter = Adapter(**vars_of(adapter) | {"last_window": "rows"})
  text = instruction_models.TEXT
  result = runs.score(adapter.experiment, adapter.trained.params, split="test", num_draws=8)
  nats = -adapter.loglikelihood_rolling(asked((text,)))[0] / result.tokens
  error = 1e-5 if kind == "exact" else 4 * result.standard_error
  assert nats == pytest.approx(result.nats_per_token, abs=error)
  bits = nats * result.tokens / len(text.encode()) / np.log(2)
  assert bits == pytest.approx(result.bits_per_byte, rel=1e-4 if kind == "exact" else 0.1)


def vars_of(adapter):
  """The options that an adapter was made of."""
  return {name: value for name, value in vars(adapter.args).items() if value is not None}


def test_the_last_window_reads_what_was_scored_before(exact, next_token):
  """lm_eval's windows by the formula; rows without context cost another number."""
  text, log_probs = instruction_models.TEXT, next_token[1]
  ids = exact.experiment.tokenizer.encode(text)
  total, start = 0.0, 0
  while start < len(ids):
    stop = min(start + 64, len(ids))
    row = ids[max(stop - 64, 0) : stop]
    laws = log_probs(row)[np.arange(len(row)), row]
    total += laws[len(row) - (stop - start) :].sum()
    start = stop
  assert len(ids) % 64
  assert exact.loglikelihood_rolling(asked((text,)))[0] == pytest.approx(total, rel=1e-4)


def test_the_bound_of_a_pair_is_its_own(bound):
  """Alone and in another order; the error is told; is_greedy is what the decoder fills in."""
  whole = bound.loglikelihood(asked(*PAIRS))
  assert all(0 < each.standard_error < 10 for each in bound.scores[1:3])
  alone = [bound.loglikelihood(asked(pair))[0] for pair in PAIRS[::-1]]
  np.testing.assert_allclose([a[0] for a in alone[::-1]], [w[0] for w in whole], rtol=1e-5)
  context = bound.experiment.tokenizer.encode("It was")
  decoding = bound._decoding(bound.experiment, 0.0)._replace(end_id=None)
  (ids,) = bound._writer(decoding).write(opened([context], [3]))
  assert bound._written([request(context, ids), request(context, ids[::-1] + 1)]) == [True, False]
  info = bound.get_model_info()
  assert info["num_draws"] == 8 and info["mean_standard_error_nats"] > 0
  assert info["log_probabilities"].startswith("lower bounds")


def test_texts_go_on_greedily_until_a_stop_string(exact, next_token):
  """By the formula; the canvas is where a text without a stop string ends."""
  options = {"until": ["no such"], "max_gen_toks": 6, "do_sample": False}
  whole = exact.generate_until(asked(("It was", options), ("", options)))
  for context, text in zip(("It was", ""), whole):
    ids = exact.experiment.tokenizer.encode(context).tolist()
    wanted = greedy_text(exact, next_token[1], context, 6)
    assert text == wanted.partition("\n")[0] or "\n" in wanted, ids
  stop = whole[0][1:3]
  cut = exact.generate_until(asked(("It was", options | {"until": [stop]})))[0]
  assert cut == whole[0].partition(stop)[0] and stop


def test_samples_depend_on_their_prompt_alone(bound):
  """A draw in a batch is the draw alone, and a prompt that comes twice is drawn twice."""
  options = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
  contexts = ["It was", "the best", "It was"]
  whole = bound.generate_until(asked(*[(context, options) for context in contexts]))
  alone = bound.generate_until(asked(("the best", options)))
  assert whole[1] == alone[0] and whole[0] != whole[2]


def test_a_chat_is_read_as_tokens(exact):
  history = [{"role": "user", "content": "It was"}]
  other = Adapter(**vars_of(exact) | {"template": "chatml"})
  text = other.apply_chat_template(history)
  ids = other._ids(text)
  assert text.startswith("<|im_start|>user\nIt was<|im_end|>") and ids[0] == 3 and 1 in ids
  assert 3 not in exact._ids(text) and exact.chat_template(False) == ""
  assert other.chat_template(True) == "chatml"


def test_long_contexts_are_refused_or_lose_their_begin(exact, next_token):
  text = instruction_models.TEXT[:300]
  with pytest.raises(ValueError, match=r"are more than max_length=64; use a larger max_length"):
    exact.loglikelihood(asked((text, " best")))
  with pytest.raises(ValueError, match=r"and max_gen_toks=64 are more than max_length=64"):
    exact.generate_until(asked(("It was the best", {"max_gen_toks": 64})))
  cutting = Adapter(**vars_of(exact) | {"longer": "cut"})
  whole = cutting.experiment.tokenizer.encode(text + " best")
  kept = cutting.loglikelihood(asked((text, " best")))[0][0]
  laws = next_token[1](whole[-64:])
  count = len(whole) - len(cutting.experiment.tokenizer.encode(text))
  wanted = sum(laws[len(laws) - 1 - n, whole[-n]] for n in range(1, count + 1))
  assert kept == pytest.approx(wanted, rel=1e-4)
  assert cutting.generate_until(asked((text, {"max_gen_toks": 4})))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, r"model_args lack workdir="),
    ({"workdir": "x", "num_drws": 3}, r"model_args.num_drws.*did you mean 'num_draws'"),
    ({"workdir": "x", "num_draws": 0}, r"model_args.num_draws=0"),
    ({"workdir": "x", "batch_size": "auto"}, r"batch_size='auto' must be a number of rows"),
    ({"workdir": "x", "longer": "left"}, r"model_args.longer='left'"),
  ],
)
def test_a_mistake_is_told_in_one_line(options, message):
  with pytest.raises(ValueError, match=message) as error:
    model_args(options)
  assert "\n" not in str(error.value)


def test_what_a_workdir_cannot_do_is_told_before_it_is_loaded(masked, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="there is no checkpoint"):
    Adapter(workdir=str(tmp_path))
  monkeypatch.setattr(lm_eval_adapter.runs, "load", None)
  with pytest.raises(ValueError, match=r"--decoder=lada is unknown; did you mean 'llada'"):
    Adapter(workdir=masked, decoder="lada")
  with pytest.raises(ValueError, match="needs a second model that scores"):
    Adapter(workdir=masked, decoder="edlm")


def test_without_lm_eval_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[lm_eval\]'"):
    lm_eval_adapter.register()


def task(place, name, **options):
  """A local task of lm_eval."""
  (place / f"{name}.yaml").write_text(json.dumps({"task": name, "test_split": "test", **options}))


def of_file(path):
  return {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}


METRIC = {"aggregation": "mean", "higher_is_better": True}
TASKS = {
  "pairs": {
    "output_type": "loglikelihood",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{continuation}}",
    "metric_list": [
      {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
      {"metric": "acc", **METRIC},
    ],
  },
  "texts": {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
      {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    ],
  },
  "answers": {
    "output_type": "generate_until",
    "doc_to_text": "{{context}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["no such"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", **METRIC}],
  },
}


def test_lm_eval_from_end_to_end(exact, next_token, tmp_path, monkeypatch):
  """Local tasks: its numbers are those of the formula and of evaluate."""
  pytest.importorskip("lm_eval", reason="needs the package lm_eval (extra: lm_eval)")
  from lm_eval import simple_evaluate
  from lm_eval.tasks import TaskManager

  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "sets"))
  workdir, log_probs = next_token
  texts = [{"context": c, "continuation": t} for c, t in (("It was", " best"), PAIRS[2])]
  answers = [greedy_text(exact, log_probs, "It was", 4), "x"]
  texts = [t | {"text": instruction_models.TEXT, "answer": a} for t, a in zip(texts, answers)]
  (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, texts)))
  for name, options in TASKS.items():
    task(tmp_path, name, **of_file(tmp_path / "test.jsonl"), **options)
  lambada = LAMBADA.exists()
  if lambada:
    words = {
      "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
      "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
    }
    task(tmp_path, "lambada_here", **of_file(LAMBADA), **TASKS["pairs"] | words)
  lm_eval_adapter.register()
  results = simple_evaluate(
    model=lm_eval_adapter.NAME,
    model_args=f"workdir={workdir},max_length=1024",
    tasks=[*TASKS, *["lambada_here"] * lambada],
    task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    batch_size=4,
    limit=2,
    bootstrap_iters=0,
  )
  found = results["results"]
  whole = runs.load(workdir, [("data.length", 192), ("evaluate.batch_size", 1)])
  scored = runs.score(whole.experiment, whole.params, split="test", num_draws=1)
  assert found["texts"]["bits_per_byte,none"] == pytest.approx(scored.bits_per_byte, rel=1e-4)
  costs = [by_formula(exact, log_probs, t["context"], t["continuation"])[0] for t in texts]
  assert found["pairs"]["perplexity,none"] == pytest.approx(np.exp(-np.mean(costs)), rel=1e-3)
  assert found["answers"]["exact_match,none"] == 0.5
  assert results["config"]["log_probabilities"] == "exact"
  if lambada:
    lines = [json.loads(line)["text"] for line in LAMBADA.read_text().splitlines()[:2]]
    pairs = [line.rsplit(" ", 1) for line in lines]
    costs = [by_formula(exact, log_probs, a, f" {b}")[0] for a, b in pairs]
    wanted = np.exp(-np.mean(costs))
    assert found["lambada_here"]["perplexity,none"] == pytest.approx(wanted, rel=2e-3)


def test_the_command_knows_the_model(monkeypatch, tmp_path):
  """The wrapper registers the model before lm_eval reads its flags; a mistake is one line."""
  pytest.importorskip("lm_eval", reason="needs the package lm_eval (extra: lm_eval)")
  from lm_eval import __main__ as command
  from lm_eval.api.registry import get_model

  from experiments import lm_eval as wrapper

  said = []
  monkeypatch.setenv("DISABLE_MULTIPROC", "1")
  monkeypatch.setattr(command, "cli_evaluate", lambda: get_model("diffusion_text")(workdir="none"))
  monkeypatch.setattr(wrapper, "fail", said.append)
  wrapper.main()
  assert len(said) == 1 and said[0].startswith("--workdir=none: there is no checkpoint")
