"""`check_reader`: the laws that every reader obeys, with a sampler in the loop."""

from __future__ import annotations

from collections.abc import Collection

from diffusion_text.reader.whole_row import WholeRow
from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import check_equal_options, expect, run
from diffusion_text.testing.texts import Texts
from diffusion_text.types import Model, Params, Reader, Sampler


def check_reader(
  reader: Reader,
  model: Model,
  params: Params,
  sampler: Sampler,
  language: Enumerable,
  *,
  same_as: Reader | None = None,
  exact_cache: bool = True,
  exact_law: bool = True,
  rows: int = 512,
  slack: float = 0.02,
  block: int | None = None,
  only: Collection[str] | None = None,
) -> None:
  """Raises AssertionError, with what was found and expected, for a law that the reader breaks.

  In the order in which they are tried: "options", "fits" (its own `check`), "tokens" (observed ones
  and padding never altered), "calls" (`calls` network calls per read), "same" (tokens are those of
  `same_as`, with the sampler in the loop, as a cache may go stale between calls), "alone" (a row
  alone is that row in a batch), "host" (the host's loop is the compiled loop), "law".

  Args:
    reader: any.
    model: a model whose network is exact (`exact_model`).
    params: the model's.
    sampler: in the loop.
    language: what the network knows.
    same_as: the reader whose tokens must be the same; None: whole rows.
    exact_cache: False if the reader answers other than `same_as` on purpose, as a cache does that
      is refreshed now and then, and guidance ("same").
    exact_law: False if the texts have another law than the language ("law").
    rows: texts that are made.
    slack: total variation to the language that is allowed.
    block: positions that are sampled together, as in `sample`.
    only: names of the laws to try; None: all.
  """
  texts = Texts(sampler, reader, model, params, language, rows, reader, block)
  same_as = WholeRow() if same_as is None else same_as
  leave_out = set() if exact_law else {"law"}
  leave_out |= set() if exact_cache else {"same"}

  def same():
    texts.check_same(texts.by(sampler, same_as), same_as)

  def calls():
    expect(reader.every >= 1, f"every, of {reader}", reader.every, "at least 1")
    texts.check_calls(None, reader.calls + sampler.extra_calls)

  run(
    {
      "options": lambda: check_equal_options(reader),
      "fits": lambda: reader.check(model),
      "tokens": texts.check_tokens,
      "calls": calls,
      "same": same,
      "alone": texts.check_alone,
      "host": texts.check_host,
      "law": lambda: texts.check_law(slack),
    },
    only,
    leave_out,
  )
