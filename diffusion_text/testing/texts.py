"""Texts that a sampler and a reader make of an exact model, and the laws that they share."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from diffusion_text.sampler.host import host_sample
from diffusion_text.sampler.loop import Sample, row_keys, sample
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import expect, expect_same
from diffusion_text.types import Batch, Model, Params, Reader, Sampler

_PADDED = 8  # rows whose last token is padding
_ALONE = 4  # rows that are generated again, with their keys, beside none of the others


class Texts:
  """One batch of texts, in which a sampler, a reader and a loop can go wrong.

  Of half of the rows nothing is observed, of the other half the first token. The last few rows end
  in padding, a segment of its own.
  """

  def __init__(
    self,
    sampler: Sampler,
    reader: Reader | None,
    model: Model,
    params: Params,
    language: Enumerable,
    rows: int,
    who: Any,
    block: int | None = None,
  ):
    self.block = block
    self.sampler, self.reader, self.model, self.params = sampler, reader, model, params
    self.language, self.who = language, who
    ids = language.systematic(rows)
    observed = np.zeros(ids.shape, bool)
    observed[rows // 2 :, 0] = True
    padding = np.zeros(ids.shape, bool)
    padding[-_PADDED:, -1] = True
    self.padding, self.observed = padding, observed
    segment = padding.astype(np.int32)
    self.batch = Batch(ids, observed, weights=np.float32(~padding), segment=segment)
    self.keys = row_keys(jax.random.key(4), rows)

  def by(self, sampler: Sampler, reader: Reader | None) -> Sample:
    """The same batch, by another sampler or reader."""
    how = {"batch": self.batch, "reader": reader, "trace": True, "block": self.block}
    return jax.device_get(sample(self.model, self.params, sampler, self.keys, **how))

  @functools.cached_property
  def made(self) -> Sample:
    """The batch."""
    return self.by(self.sampler, self.reader)

  @functools.cached_property
  def few(self) -> tuple[np.ndarray, Any, Batch]:
    """(row numbers, keys, batch): a few rows of each kind, in another order."""
    rows = len(self.padding)
    which = np.array([rows - 1, 0, rows // 2, 1])[:_ALONE]
    return which, self.keys[which], jax.tree.map(lambda leaf: leaf[which], self.batch)

  @functools.cached_property
  def alone(self) -> Sample:
    """The few rows."""
    _, keys, batch = self.few
    how = {"batch": batch, "reader": self.reader, "trace": True, "block": self.block}
    return jax.device_get(sample(self.model, self.params, self.sampler, keys, **how))

  def check_tokens(self) -> None:
    """Every token is one, and what was observed or is padding stands as it was."""
    ids, size = self.made.ids, self.language.vocab_size
    tokens = (ids >= 0) & (ids < size)
    expect(tokens, f"texts are tokens, of {self.who}", np.unique(ids), f"ids below {size}")
    kept = self.observed | self.padding
    law = f"observed tokens and padding are never altered, of {self.who}"
    expect_same(ids[kept], self.batch.ids[kept], law)
    committed = self.made.committed
    if committed.shape == kept.shape:
      drawn = (committed >= 0) == ~kept
      expect(drawn, f"committed where tokens are generated, of {self.who}", committed, "-1 else")

  def check_alone(self) -> None:
    """A row beside other company is the same row."""
    which, _, _ = self.few
    found, made = self.alone, self.made
    law = f"a row alone is that row in a batch, of {self.who}"
    expect_same(found.ids, made.ids[which], f"{law}, ids")
    expect_same(found.row_calls, made.row_calls[which], f"{law}, calls")
    expect_same(found.committed, made.committed[which], f"{law}, committed")

  def check_host(self) -> None:
    """The host's loop makes the tokens of the compiled one."""
    _, keys, batch = self.few
    how = {"batch": batch, "reader": self.reader, "trace": True, "block": self.block}
    steps = host_sample(self.model, self.params, self.sampler, keys, **how)
    found = None
    while found is None:
      try:
        next(steps)
      except StopIteration as stop:
        found = jax.device_get(stop.value)
    law = f"the host's loop is the compiled loop, of {self.who}"
    expect_same(found, self.alone, law, 1e-4)

  def check_calls(self, calls: int | None, calls_per_step: int) -> None:
    """A row makes no more calls than are made, in whole steps; as many as were announced."""
    row_calls, made = self.made.row_calls, self.made.calls
    law = f"calls, of {self.who}"
    expect(row_calls <= made, law, row_calls.max(), f"at most {made} for a row")
    whole = (row_calls % calls_per_step == 0) & (row_calls > 0)
    expect(whole, law, np.unique(row_calls), f"multiples of {calls_per_step}, above 0")
    if calls is not None:
      expect(made == calls, law, made, calls)

  def check_law(self, slack: float) -> None:
    """Texts, with and without an observed first token, have the law of the language."""
    ids = self.made.ids[~self.padding.any(1)]
    distance = self.language.total_variation(self.language.histogram(ids))
    chance = self.language.chance_distance(len(ids))
    most = 1.5 * chance + slack
    law = f"total variation of {len(ids)} texts to the language, of {self.who}"
    wanted = f"at most {most:.4f} (exact draws: {chance:.4f})"
    expect(distance < most, law, f"{distance:.4f}", wanted)

  def check_trace(self) -> None:
    """At one token per call, the log-probabilities of the trace add up to log p(text)."""
    whole = ~self.padding.any(1)
    ids, drawn = self.made.ids[whole], ~self.observed[whole]
    committed = np.where(drawn, self.made.committed[whole], -1 - np.arange(ids.shape[1]))
    different = [len(set(row)) == len(row) for row in committed.tolist()]
    law = f"one token per call, of {self.who}"
    expect(different, law, committed[int(np.argmin(different))], "a call of its own for each")
    first = np.zeros((self.language.vocab_size,))
    np.add.at(first, self.language.sequences[:, 0], self.language.probabilities)
    known = np.where(drawn[:, 0], 0.0, np.log(first[ids[:, 0]]))
    found = (self.made.log_prob[whole] * drawn).sum(1) + known
    expected = self.language.log_likelihood(ids)
    law = f"log-probabilities of the trace add up to log p(text), of {self.who}"
    expect_same(found, expected, law, 1e-3)

  def check_same(self, other: Sample, whose: Any) -> None:
    """The tokens are those of another way to make them."""
    law = f"tokens of {self.who} are those of {whose}"
    expect_same(self.made.ids, other.ids, law)
    if self.made.log_prob is not None:
      expect_same(self.made.log_prob, other.log_prob, f"{law}, log-probabilities", 1e-3)
