"""Acceptance: made-up members, one file each, pass the checks, alone and with one another."""

import pytest

from diffusion_text.process.masked import Masked
from diffusion_text.testing import (
  Enumerable,
  check_context,
  check_objective,
  check_process,
  check_reader,
  check_sampler,
  check_timing,
  exact_model,
)
from tests.testing.madeup.context import Padded
from tests.testing.madeup.objective import Humble
from tests.testing.madeup.process import Faded
from tests.testing.madeup.reader import Chorus
from tests.testing.madeup.sampler import Backwards
from tests.testing.madeup.timing import Relay

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)


@pytest.fixture(scope="module")
def masked():
  return exact_model(Masked(3), LANGUAGE)


def test_process():
  check_process(Faded(3, height=2.0), language=LANGUAGE, rows=1024, steps=32)


def test_timing():
  check_timing(Relay())


def test_context():
  check_context(Padded(room=2), language=LANGUAGE)


def test_objective(masked):
  check_objective(Humble(), *masked, LANGUAGE, rows=512)


def test_sampler(masked):
  check_sampler(Backwards(), *masked, LANGUAGE, one_per_call=True, calls=4)


def test_reader(masked):
  check_reader(Chorus(), *masked, Backwards(), LANGUAGE)


def test_all_together():
  """Six members that have never met: the bound is the entropy, and texts have the law."""
  model, params = exact_model(Faded(3), LANGUAGE, timing=Relay(), context=Padded())
  check_objective(Humble(), model, params, LANGUAGE, only={"bound", "groups"}, largest_error=0.15)
  check_sampler(
    Backwards(), model, params, LANGUAGE, reader=Chorus(), only={"tokens", "law", "calls"}, calls=8
  )
