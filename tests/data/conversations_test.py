"""Which tokens of a conversation are answers, how conversations share rows, and what a loss sees of
them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the package tokenizers (extra: pretrained)")

import tokenizers as library

from diffusion_text.context import Annealed, Full
from diffusion_text.data.chat_template import ChatTemplate
from diffusion_text.data.conversations import Chats, conversation_rows, encode
from diffusion_text.data.corpora import CORPORA
from diffusion_text.data.pipeline import evaluation_batches, train_iterator
from diffusion_text.data.token_arrays import token_arrays
from diffusion_text.data.tokenizer_json import JsonTokenizer
from diffusion_text.data.tokenizers import build_tokenizer
from diffusion_text.experiment.settings import DataSettings
from diffusion_text.objective import Bound, engine
from diffusion_text.process.masked import Masked
from diffusion_text.testing.small_transformer import noisy_parameters, small_transformer
from diffusion_text.timing import Shared
from diffusion_text.types import Model, Progress, Times


def message(role, content):
  return {"role": role, "content": content}


SHORT = [message("user", "Who?"), message("assistant", "Emma.")]
LONG = [
  message("system", "Be brief."),
  message("user", "Where is <|im_end|> written?"),
  message("assistant", "At the end: <|im_end|>"),
  message("user", "And then?"),
  message("assistant", "Nothing"),
  message("user", "Is this read?"),
]


@pytest.fixture(scope="module")
def template():
  """The ChatML template of a byte-level tokenizer."""
  made = library.Tokenizer(library.models.BPE())
  made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = library.decoders.ByteLevel()
  trainer = library.trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=["<end>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(["Nothing is read at the end. Who is Emma? Be brief."] * 3, trainer)
  return ChatTemplate("chatml", JsonTokenizer(made.to_str(), roles=(("end", 0),)))


def spans(found):
  """[(first, stop)] of the answers."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], found.answers, [0]]).astype(int)))
  return edges.reshape(-1, 2).tolist()


def check_answers(encode, template):
  """Answers are their texts and the marker behind each; what a user writes is no marker; all is
  what the template writes up to the last answer."""
  found = encode(template, LONG)
  texts = [template.tokenizer.decode(found.ids[start:stop]) for start, stop in spans(found)]
  assert texts == ["At the end: <|im_end|>", "Nothing"], texts
  assert [found.ids[stop - 1] for _, stop in spans(found)] == [2, 2]
  assert (found.ids == 2).sum() == 5 and found.answers[-1] and not found.answers[0]
  whole = template.ids(LONG, answer=False)
  np.testing.assert_array_equal(found.ids, whole[: len(found.ids)])
  asked = template.ids(LONG[:2], answer=True)
  np.testing.assert_array_equal(found.ids[: spans(found)[0][0]], asked)


def one_early(template, messages):
  """A mutant: the token before an answer is one too."""
  found = encode(template, messages)
  return found._replace(answers=found.answers | np.append(found.answers[1:], False))


def without_marker(template, messages):
  """A mutant: answers have no end."""
  found = encode(template, messages)
  return found._replace(answers=found.answers & (found.ids != 2))


def test_answers_and_their_ends_are_learned_and_nothing_else(template):
  check_answers(encode, template)
  for mutant in (one_early, without_marker):
    with pytest.raises(AssertionError):
      check_answers(mutant, template)


def test_any_tokenizer_will_do_with_a_plain_template():
  plain = ChatTemplate("plain", build_tokenizer("bytes", None, []))
  found = encode(plain, SHORT)
  assert plain.tokenizer.decode(found.ids) == "User: Who?\nAssistant: Emma.\n"
  assert plain.tokenizer.decode(found.ids[found.answers]) == " Emma.\n"


def rows_of(template, conversations, length, multiple=1):
  """The rows of conversations."""
  found = [encode(template, each) for each in conversations]
  offsets = np.cumsum([0, *(len(each.ids) for each in found)])
  ids, answers = (np.concatenate(parts) for parts in zip(*found, strict=True))
  end = template.tokenizer.separator
  return found, conversation_rows(ids, answers, offsets, length, end, multiple)


def test_conversations_that_are_left_out_are_counted(template, caplog):
  (short, long), _ = rows_of(template, [SHORT, LONG], 200)
  length = len(short.ids) + 1
  with caplog.at_level("INFO"):
    rows_of(template, [SHORT, LONG, SHORT], length)
    rows_of(template, [SHORT, SHORT], length)
  (line,) = [each for each in caplog.messages if "left out" in each]
  assert f"1 of 3 conversations are longer than a row of {length} tokens" in line
  assert f"the longest has {len(long.ids)}" in line


def test_rows_hold_whole_conversations(template):
  """In their order, as many as fit; the last answer of each is filled up; too long ones are left
  out; padding weighs nothing."""
  (short, long), _ = rows_of(template, [SHORT, LONG], 200)
  number = len(short.ids)
  filled = number + -short.answers.sum() % 8
  length = 2 * filled + 3
  _, rows = rows_of(template, [SHORT, LONG, SHORT, SHORT], length, multiple=8)
  assert len(long.ids) > length and rows.count == 2 and filled > number
  batch = rows.rows(np.array([0, 1, -1, 2]))
  for field in ("ids", "observed", "weights", "segment"):
    np.testing.assert_array_equal(getattr(batch, field)[0], getattr(batch, field)[3])
  assert not batch.weights[2].any() and not batch.segment[2].any()
  for row, starts in ((0, (0, filled)), (1, (0,))):
    for segment, start in enumerate(starts, 1):
      here = slice(start, start + filled)
      np.testing.assert_array_equal(batch.ids[row, here][:number], short.ids)
      assert (batch.ids[row, here][number:] == 0).all(), "ends of text"
      np.testing.assert_array_equal(batch.observed[row, here][:number], ~short.answers)
      assert not batch.observed[row, here][number:].any() and (batch.weights[row, here] == 1).all()
      assert (batch.segment[row, here] == segment).all()
  assert not batch.weights[0, 2 * filled :].any() and not batch.segment[0, 2 * filled :].any()
  learned = (~batch.observed * batch.weights).sum(1)
  assert (learned[:2] % 8 == 0).all() and learned[0] == 2 * learned[1]
  with pytest.raises(ValueError, match=r"length=8, but the shortest of 1 conversations has"):
    rows_of(template, [SHORT], 8)


V, LENGTH = 300, 64
PROCESS = Masked(V)
NETWORK = small_transformer(
  layers=2, width=16, heads=2, mlp_width=16, input_sizes=PROCESS.input_sizes, output_size=V
)
PARAMS = {"network": noisy_parameters(NETWORK, scale=0.3), "process": {}, "timing": {}}


@functools.partial(jax.jit, static_argnums=0)
def losses(context, batch, state):
  """(the loss of each token [B, N], how many tokens count) of a transformer, tokens at t = 1/2."""
  model = Model(NETWORK, PROCESS, Shared(), context, chunk=64)
  t = jnp.where(batch.observed, 0.0, 0.5)
  times = Times(t, jnp.ones_like(t), t[:, :1], t)
  ask = model, PARAMS, jax.random.key(0), batch, times, Progress(step=10)
  noised = engine.read(*ask, corrupted=(batch.ids, state))
  loss, costs = Bound().of_rows(model, PARAMS, batch, noised)
  return costs.nats * costs.weight, loss.count


TALKS = [SHORT, [*SHORT[:1], message("assistant", "No one.")], LONG[:3]]


def check_packed(template, context, change=lambda batch: batch):
  """Conversations in a row cost what each costs in a row of its own, and answers alone cost."""
  found, rows = rows_of(template, TALKS[:2], LENGTH)
  packed = change(rows.rows(np.array([0])))
  masks = np.random.default_rng(0).random(packed.ids.shape) < 0.6
  state = np.where(masks & ~packed.observed, V, packed.ids)
  together, count = losses(context, packed, state)
  learned = np.concatenate([each.answers for each in found])
  assert float(count) == learned.sum()
  size = len(learned)
  assert not together[0, :size][~learned].any() and (together[0, :size][learned] > 0).sum() > 3
  place = 0
  for number, one in enumerate(found):
    here = slice(place, place + len(one.ids))
    alone = rows_of(template, TALKS[number : number + 1], LENGTH)[1].rows(np.array([0]))
    noisy = np.concatenate([state[:, here], alone.ids[:, len(one.ids) :]], axis=1)
    cost, _ = losses(context, alone, noisy)
    np.testing.assert_allclose(together[0, here], cost[0, : len(one.ids)], atol=2e-5)
    place = here.stop


def test_a_packed_row_costs_what_its_conversations_cost_apart(template):
  check_packed(template, Full())


def test_shifted_answers_show_the_noise_before_the_row_to_its_first_conversation(template):
  """So that the second costs less or more than in a row of its own, whatever the first one says."""
  shifted = Annealed(steps=1, answer_shift=1)
  costs = []
  with pytest.raises(AssertionError, match="Mismatch"):
    check_packed(template, shifted)
  for talks in (TALKS[:2], [[message("user", "How?"), SHORT[1]], TALKS[1]]):
    found, rows = rows_of(template, talks, LENGTH)
    batch = rows.rows(np.array([0]))
    state = np.where(batch.observed, batch.ids, V)
    costs.append(np.asarray(losses(shifted, batch, state)[0])[0, len(found[0].ids) :][:20])
  np.testing.assert_allclose(*costs, atol=2e-5)


def seen_by_each_other(batch):
  return dataclasses.replace(batch, segment=np.minimum(batch.segment, 1))


def nothing_observed(batch):
  return dataclasses.replace(batch, observed=np.zeros_like(batch.observed))


@pytest.mark.parametrize("mutant", [seen_by_each_other, nothing_observed])
def test_conversations_that_see_each_other_and_learned_questions_are_noticed(template, mutant):
  with pytest.raises(AssertionError):
    check_packed(template, Full(), mutant)


@pytest.fixture
def chats(tmp_path):
  """A file of conversations."""
  path = tmp_path / "chats.jsonl"
  texts = [
    [message("user", f"Who is {n}?"), message("assistant", f"It is {n}.")] for n in range(80)
  ]
  path.write_text("".join(json.dumps({"id": 1, "messages": each}) + "\n" for each in texts))
  return path


def test_files_become_batches(template, chats, tmp_path):
  """Mapped or in memory; answers are written beside the tokens; no separator is added."""
  corpus = CORPORA["conversations"](str(chats))
  read = [
    token_arrays(corpus, template.tokenizer, "train", place, Chats(template))
    for place in (None, tmp_path / "cache", tmp_path / "cache")
  ]
  for arrays in read[1:]:
    for field in ("tokens", "offsets", "answers"):
      np.testing.assert_array_equal(getattr(arrays, field), getattr(read[0], field))
    assert arrays.content == read[0].content and not (arrays.tokens == 0).any()
  options = {"length": 100, "batch_size": 4, "packing_kind": "conversations", "answer_multiple": 4}
  batch = next(train_iterator(read[1], seed=0, **options))
  assert batch.ids.shape == (4, 100) and batch.segment.max() > 1
  every = list(evaluation_batches(read[1], **options))
  scored = sum((each.weights * ~each.observed).sum() for each in every)
  first = np.array(read[1].answers[: read[1].offsets[1]]).sum()
  assert scored >= read[1].answers.sum() and scored % 4 == 0 and first > 3
  with pytest.raises(ValueError, match=r"would cut targets off"):
    train_iterator(read[1], seed=0, short_rows=0.1, **options)


def test_settings_find_the_template(chats, tmp_path):
  """That beside the tokenizer, the one that is named, or a plain one."""
  section = {"corpus": "conversations", "packing": "conversations", "path": str(chats)}
  section |= {"tokenizer": "bytes", "cache_dir": str(tmp_path / "cache")}
  data = DataSettings(**section)
  tokenizer = data.make_tokenizer()
  plain = data.tokens(tokenizer, "train")
  assert tokenizer.decode(plain.tokens[plain.answers]).startswith(" It is ")
  named = DataSettings(**section, template="chatml").tokens(tokenizer, "train")
  assert "<|im_start|>user\n" in tokenizer.decode(named.tokens)
  (tmp_path / "tokenizer").write_bytes(tokenizer.to_bytes())
  beside = DataSettings(**section, tokenizer_path=str(tmp_path / "tokenizer"))
  with pytest.raises(ValueError, match=r"came without a chat template; give --template"):
    beside.tokens(tokenizer, "train")
  for wrong, match in [
    ({"corpus": "folder"}, r"'conversations' is a corpus and the packing of its rows; set both"),
    ({"short_rows": 0.1}, r"short_rows=0.1 .*would cut targets off"),
    ({"corpus": "austen", "packing": "stream", "answer_multiple": 2}, r"leave them unset"),
  ]:
    with pytest.raises(ValueError, match=match):
      DataSettings(**{**section, **wrong})


@pytest.mark.parametrize("line, match", [
  ({"messages": []}, r":1 has no list of messages in field='messages', it holds \['messages'\]"),
  ({"messages": [message("user", "a")]}, r":1 has no message of the role 'assistant'"),
  ({"messages": [message("user", None)]}, r":1 has null in 'content' of a message"),
  ({"messages": ["a"]}, r":1 has 'a' in the place of a message with role and content"),
])  # fmt: skip
def test_what_is_no_conversation_is_refused(tmp_path, line, match):
  (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
  with pytest.raises(ValueError, match=match):
    list(CORPORA["conversations"](str(tmp_path)).documents("all"))
