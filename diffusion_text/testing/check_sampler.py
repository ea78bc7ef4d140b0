"""`check_sampler`: the laws that every sampler obeys, in the loop and with an exact network."""

from __future__ import annotations

from collections.abc import Collection

from diffusion_text.testing.languages import Enumerable
from diffusion_text.testing.properties import check_equal_options, run
from diffusion_text.testing.texts import Texts
from diffusion_text.types import Model, Params, Reader, Sampler


def check_sampler(
  sampler: Sampler,
  model: Model,
  params: Params,
  language: Enumerable,
  *,
  exact_law: bool = True,
  one_per_call: bool = False,
  calls: int | None = None,
  same_as: Sampler | None = None,
  reader: Reader | None = None,
  rows: int = 1024,
  slack: float = 0.02,
  only: Collection[str] | None = None,
) -> None:
  """Raises AssertionError, with what was found and expected, for a law that the sampler breaks.

  In the order in which they are tried: "options", "fits" (its own `check`), "tokens" (all of them
  tokens; observed ones and padding never altered), "calls", "alone" (a row alone is that row in a
  batch), "host" (the host's loop is the compiled loop), "same" (tokens are those of `same_as`),
  "trace", "law" (texts have the law of the language, also where a token is observed).

  Args:
    sampler: any.
    model: a model whose network is exact (`exact_model`).
    params: the model's.
    language: what the network knows.
    exact_law: False if the texts have another law even with the exact network, as remasking and
      edits give ("law").
    one_per_call: True if each call commits one token, so that "trace" holds: the log-probabilities
      of a text add up to log p(text).
    calls: how many network calls a text takes; None: not tried.
    same_as: a sampler whose tokens must be the same, as those of a grid that skips and of one that
      does not; None: not tried ("same").
    reader: how the network is asked; None: whole rows.
    rows: texts that are made.
    slack: total variation to the language that is allowed for the size of steps.
    only: names of the laws to try; None: all.
  """
  texts = Texts(sampler, reader, model, params, language, rows, sampler)
  per_step = sampler.extra_calls + (1 if reader is None else reader.calls)
  leave_out = set() if exact_law else {"law"}
  leave_out |= set() if one_per_call else {"trace"}
  leave_out |= {"same"} if same_as is None else set()
  run(
    {
      "options": lambda: check_equal_options(sampler),
      "fits": lambda: sampler.check(model),
      "tokens": texts.check_tokens,
      "calls": lambda: texts.check_calls(calls, per_step),
      "alone": texts.check_alone,
      "host": texts.check_host,
      "same": lambda: texts.check_same(texts.by(same_as, reader), same_as),
      "trace": texts.check_trace,
      "law": lambda: texts.check_law(slack),
    },
    only,
    leave_out,
  )
