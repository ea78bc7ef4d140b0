"""Readers that ask less where there is nothing to be guided by."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from diffusion_text.core.capability import offers
from diffusion_text.types import Batch, Reader


@runtime_checkable
class Unprompted(Protocol):
  """A reader that knows a cheaper one with the same answers where no token is observed."""

  def unprompted(self) -> Reader:
    """The reader of rows without observed tokens."""


def reader_for(reader: Reader, batch: Batch) -> Reader:
  """The reader itself, or the cheaper one if no row of the batch has an observed token.

  It is asked on the host, once for all rows of a command, so that a row's text does not depend on
  the batch that it is drawn in.
  """
  if batch.observed is None:
    observed = False
  else:
    real = True if batch.weights is None else np.asarray(batch.weights) > 0
    observed = bool((np.asarray(batch.observed) & real).any())
  return reader.unprompted() if not observed and offers(reader, Unprompted) else reader
