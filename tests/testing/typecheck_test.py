"""The checker of signatures: what a call may not be, and what is left alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Array, Float, Int, TypeCheckError

from tests.typecheck import checked

NEW = "Absent | None"  # a name that only type checkers know


@checked
def rows_of(table: Float[Array, "V D"], ids: Int[Array, " B"], scale: float) -> Float[Array, "B D"]:
  """The rows, or as many as scale says where it is negative."""
  return table[ids] if scale > 0 else table[: int(-scale)]


@checked
def wide(values: Float[Array, " n"], count: int) -> Float[Array, "n {count}"]:
  """So many columns, and one more for none."""
  return jnp.zeros((len(values), max(count, 1)))


@checked
@dataclasses.dataclass
class Options:
  size: int = 1


TABLE, IDS = np.zeros((4, 3), np.float32), np.zeros(2, np.int32)


def test_what_a_signature_allows():
  for table in (TABLE, jnp.asarray(TABLE)):
    assert rows_of(table, IDS, 1).shape == (2, 3)  # an int is a float
  assert rows_of(TABLE, IDS, scale=-2.0).shape == (2, 3)
  assert wide(TABLE[0], 2).shape == (3, 2)
  assert Options(2).size == 2


REFUSED = {
  "dimensions": lambda: rows_of(TABLE[0], IDS, 1.0),
  "numbers of another kind": lambda: rows_of(TABLE.astype(np.int32), IDS, 1.0),
  "a word": lambda: rows_of(TABLE, IDS, "1"),
  "a result of another size": lambda: rows_of(TABLE, IDS, -3.0),
  "a size that does not follow": lambda: wide(TABLE[0], 0),
  "an option": lambda: Options("1"),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED.keys())
def test_what_it_refuses(call):
  with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
    call()


def test_sizes_are_those_of_one_call():
  """Two calls, one inside the other, may call other sizes by the same name."""

  @checked
  def outer(values: Float[Array, " B"]) -> Float[Array, "B D"]:
    return rows_of(TABLE, IDS, 1.0)[: len(values)]

  assert outer(np.zeros(1, np.float32)).shape == (1, 3)


def test_what_is_left_alone():
  def plain(values):
    return values

  assert checked(plain) is plain

  def unknown(values: NEW, count: int):
    return values

  assert checked(unknown)("anything", 2) == "anything"
  with pytest.raises(TypeCheckError):
    checked(unknown)("anything", "2")
