"""`check_context`: the laws that every context obeys, through the exact network."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text.process.masked import Masked
from diffusion_text.testing.exact_model import exact_model, excess_of_bound
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import (
  check_equal_options,
  expect,
  expect_mean,
  expect_same,
  run,
)
from diffusion_text.timing.along_row import Shared
from diffusion_text.timing.counted import AtNoise
from diffusion_text.types import Batch, Context, Inputs, Process, Progress, Rows, Times, Timing

_LATE = Progress(step=10**6)  # a context that changes in training is what it samples with


def check_context(
  context: Context,
  *,
  answer_shift: int = 0,
  process: Process | None = None,
  timing: Timing | None = None,
  language: Enumerable | None = None,
  packed: bool = True,
  exact_law: bool = True,
  rows: int = 1024,
  draws: int = 16,
  largest_error: float = 0.1,
  only: Collection[str] | None = None,
) -> None:
  """Raises AssertionError, with what was found and expected, for a law that the context breaks.

  In the order in which they are tried: "options", "spans", "no_answer_shown" (no token's own id
  reaches its answer), "sampling" (sampling rows answer as training rows do), "horizon"
  (the first token sees what its `horizon` says), "dropped" (the id of a dropped token is not
  shown), "bound" (with the exact network it is the entropy), "packed" (two
  documents in a row cost twice the entropy).

  Args:
    context: any.
    answer_shift: 1 if a token is answered at the position before its own.
    process: of ids, with a mask; None: masked diffusion over 3 tokens.
    timing: of the bound; None: one shared time, or noise alone if the context reads no noisy token.
    language: of rows whose length the context's unit divides; None: 4 tokens.
    packed: False if the context refuses documents that share a row ("packed").
    exact_law: False if tokens do not see all that they might ("bound" is then tried from below
      only, and "packed" not at all).
    rows: rows of each draw.
    draws: draws of the bound.
    largest_error: the largest share of the entropy that the bound may be uncertain by.
    only: names of the laws to try; None: all.
  """
  language = Enumerable.dirichlet(0, 0.5, 3, 4) if language is None else language
  process = Masked(language.vocab_size) if process is None else process
  if timing is None:
    timing = Shared() if context.reads_noisy else AtNoise()
  model, params = exact_model(
    process, language, timing=timing, context=context, answer_shift=answer_shift
  )
  too_much = largest_error * language.entropy

  def bound():
    found = excess_of_bound(model, params, language, rows=rows, draws=draws)
    law = f"bound less -log p(x), of {context}"
    if exact_law:
      expect_mean(found, 0.0, law, too_much)
    else:
      low = found.mean > -4 * found.error - 1e-3
      expect(low, law, f"{found.mean:+.4f} ± {found.error:.4f}", "at least 0")

  def two_documents():
    found = excess_of_bound(model, params, language, rows=rows, draws=draws, documents=2)
    law = f"bound of two documents in a row less their -log p, of {context}"
    expect_mean(found, 0.0, law, 2 * too_much)

  asked = _Asked(model, params, language)
  run(
    {
      "options": lambda: check_equal_options(context),
      "spans": asked.check_spans,
      "no_answer_shown": asked.check_no_answer_shown,
      "sampling": asked.check_sampling,
      "horizon": asked.check_horizon,
      "dropped": asked.check_dropped,
      "bound": bound,
      "packed": two_documents,
    },
    only,
    set() if packed and exact_law else {"packed"},
  )


class _Asked:
  """Questions about rows of masks and tokens, answered through training and sampling rows."""

  def __init__(self, model, params, language: Enumerable):
    self.model, self.params, self.language = model, params, language
    self.context, self.process = model.context, model.process

    @jax.jit
    def training(batch, masked):
      prediction = self._ask(params, self._training_rows(batch, masked))
      return jax.nn.softmax(prediction.logits, axis=-1)

    @jax.jit
    def sampling(ids, masked):
      t = masked.astype(jnp.float32)
      rows = self.context.sampling_rows(*self._inputs(ids, masked)[::2], t, Batch(ids))
      return jax.nn.softmax(self._ask(params, rows).logits, axis=-1)

    self.training, self.sampling = training, sampling

  def _ask(self, params, rows: Rows):
    return self.model.network.apply(params["network"], rows)

  def _inputs(self, ids, masked) -> tuple[Inputs, Inputs, Inputs]:
    """(noisy, clean, noise)."""
    process, params = self.process, self.params["process"]
    masks = jnp.full(ids.shape, process.mask_id, jnp.int32)
    t, one = masked.astype(jnp.float32), jnp.ones(ids.shape)
    states = (jnp.where(masked, masks, ids), t), (ids, 0 * t), (masks, one)
    return tuple(process.inputs(params, state, time) for state, time in states)

  def _training_rows(self, batch: Batch, masked, progress: Progress = _LATE) -> Rows:
    t = masked.astype(jnp.float32)
    if batch.dropped is not None:
      masked = masked | batch.dropped
      t = jnp.where(batch.dropped, 1.0, t)
    times = Times(t, jnp.ones_like(t), t[:, :1], t)
    inputs = self._inputs(batch.ids, masked)
    return self.context.training_rows(jax.random.key(0), *inputs, times, batch, progress)

  def check_spans(self) -> None:
    """The spans lie in the rows, and the rows are as long as `positions_read` says."""
    ids = jnp.asarray(self.language.systematic(3))
    length = ids.shape[1]
    rows = self._training_rows(Batch(ids), jnp.ones(ids.shape, bool))
    read = self.context.positions_read(length)
    law = f"positions of a training row, of {self.context}"
    expect(rows.inputs.shape == (3, read), law, rows.inputs.shape, (3, read))
    expect(rows.t.shape == (3, read), f"{law}, of t", rows.t.shape, (3, read))
    for name, span, sizes in (
      ("answers", rows.answers, (length,)),
      ("tokens", rows.tokens, (length,) if self.context.reads_noisy else (0, length)),
    ):
      law = f"rows.{name}, of {self.context}"
      inside = 0 <= span.start <= span.stop <= read
      expect(inside, law, span, f"a span within {read} positions")
      expect(span.size in sizes, law, f"{span.size} positions", f"one of {sizes}")

  def check_no_answer_shown(self) -> None:
    """The answer of a token that is noise stays the same if its id is another one."""
    length, size = self.language.length, self.language.vocab_size
    ids = np.repeat(self.language.systematic(16), length, axis=0)
    place = np.tile(np.arange(length), 16)
    row = np.arange(len(ids))
    masked = np.random.default_rng(0).random(ids.shape) < 0.5
    if not self.context.reads_noisy:
      masked[:] = True
    masked[row, place] = True
    other = ids.copy()
    other[row, place] = (ids[row, place] + 1) % size
    one, two = self.training(Batch(ids), masked), self.training(Batch(other), masked)
    law = f"the answer of a token says nothing of its own id, of {self.context}"
    expect_same(np.asarray(two)[row, place], np.asarray(one)[row, place], law, 1e-5)

  def check_sampling(self) -> None:
    """Of each unit, with what is before it clean and after it noise, both kinds of rows agree."""
    length = self.language.length
    unit = self.context.unit or length
    ids = self.language.systematic(16)
    noise = np.random.default_rng(1).random(ids.shape) < 0.5
    noise[:, ::unit] = True  # a window is not finished: something in it is noise
    for start in range(0, length, unit):
      window = slice(start, start + unit)
      place = np.arange(length)
      masked = np.where(place < start, False, np.where(place < start + unit, noise, True))
      trained = self.training(Batch(ids), noise)
      sampled = self.sampling(ids, masked)
      where = noise[:, window]
      law = f"sampling rows answer as training rows, positions {start} on, of {self.context}"
      found, expected = (np.asarray(x)[:, window][where] for x in (sampled, trained))
      expect_same(found, expected, law, 1e-5)

  def check_horizon(self) -> None:
    """While all else is noise, the id of a token reaches the first one's answer within its horizon,
    and nowhere behind it.
    """
    length, size = self.language.length, self.language.vocab_size
    within = self.context.horizon or length
    ids = self.language.systematic(16)
    for place in range(1, length):
      other = ids.copy()
      other[:, place] = (ids[:, place] + 1) % size
      masked = np.broadcast_to(np.arange(length) != place, ids.shape)
      one, two = (np.asarray(self.sampling(some, masked))[:, 0] for some in (ids, other))
      changed = np.abs(one - two).max() > 1e-5
      law = f"the first token sees position {place} with horizon={self.context.horizon}"
      expect(changed == (place < within), f"{law}, of {self.context}", changed, place < within)

  def check_dropped(self) -> None:
    """The id of a dropped token reaches no answer."""
    size = self.language.vocab_size
    ids = self.language.systematic(16)
    first = np.arange(self.language.length) == 0
    observed = np.broadcast_to(first, ids.shape)
    masked = np.broadcast_to(~first, ids.shape)
    other = np.where(first, (ids + 1) % size, ids).astype(np.int32)
    batch = Batch(ids, observed=observed, dropped=observed)
    answers = [
      np.asarray(self.training(dataclasses.replace(batch, ids=some), masked))[:, 1:]
      for some in (ids, other)
    ]
    law = f"the id of a dropped token is not shown, of {self.context}"
    expect_same(answers[1], answers[0], law, 1e-5)
