"""Texts that are made to say another value: what is taken out, and three measures that are
multiplied, of which a copy and another text each have some and not all.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.studies import transfer
from diffusion_text.studies.record_texts import Text
from diffusion_text.studies.transfer import Source

SOURCES = [
  Source(("ann", "serves", "thai"), (("ann",),)),
  Source(("bob", "is", "thai"), (("bob",),)),
]


def text(name, food, *words):
  return Text((("name", name), ("food", food), ("near", "the bar")), words)


def test_sources_say_another_value_and_enough_besides():
  said = text("ann", "thai", "ann", "serves", "thai", "near", "the", "bar")
  found = transfer.sources(
    [
      said,
      said._replace(record=(("food", "greek"), *said.record[:1])),  # says no greek
      text("ann", "greek", "ann", "is", "greek", "near", "the", "bar"),  # has the value
      text("ann", "thai", "ann", "serves", "thai"),  # says one thing besides
    ],
    "food",
    "greek",
    9,
  )
  assert found == [Source(said.words, (("ann",), ("the", "bar")))]
  assert transfer.sources([said] * 3, "food", "greek", 2) == found * 2


def test_a_copy_and_another_text_have_no_product_and_a_right_one_has():
  """The product is of each text: two halves that are right in different texts make none."""
  words = [("ann", "serves", "thai"), ("bob", "is", "greek")]
  found = transfer.scores(SOURCES, words, np.array([0.0, 1.0]), np.array([1.0, 9.0]), 5.0)
  assert [each.tolist() for each in found] == [[0, 1], [1, 1], [1, 0]]
  _, *cells = found.cells("line", 0.5)
  assert cells[3].startswith("0.000") and cells[0].startswith("0.500") and cells[4] == "0.5"
  swapped = transfer.scores(SOURCES, words[::-1], np.ones(2), np.zeros(2), 5.0)
  assert swapped.kept.tolist() == [0, 0] and swapped.cells("", 0)[4].startswith("0.000")
  right = transfer.scores(SOURCES, words, np.ones(2), np.zeros(2), 5.0)
  assert right.cells("", 0)[4].startswith("1.000")


@pytest.mark.parametrize("sign", [1, -1])
def test_the_words_that_speak_against_the_target_are_taken_out(sign, monkeypatch):
  """By a classifier that counts token 1: against the target, or for it (the mutant)."""
  monkeypatch.setattr(transfer, "TAKEN_OUT", 2)

  def log_prob(inputs):
    count = jnp.sum(inputs.vectors[..., 1], axis=1)
    return jax.nn.log_softmax(jnp.stack([sign * count, -sign * count], axis=1))

  judged = types.SimpleNamespace(log_prob=log_prob, classifier=types.SimpleNamespace(input_size=4))
  ids = np.array([[1, 2, 1, 3, 1]], np.int32)
  words = np.array([[False, True, True, True, True]])
  out = transfer.blamed(judged, ids, words, 1)
  assert (out.tolist() == [[False, False, True, False, True]]) == (sign == 1)
  assert out.sum() == 2 and not out[0, 0]
