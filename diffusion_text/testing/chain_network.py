"""An exact network of Markov chains that is cheap on rows of many tokens, as test beds of samplers
need it: all queries see the whole row, so one forward and one backward sum answer all of them.
"""

from __future__ import annotations

from typing import Any

import jax

from diffusion_text.context.whole import Full
from diffusion_text.core.options import member
from diffusion_text.testing.exact_model import facts_of
from diffusion_text.testing.exact_network import ExactNetwork, exact_params, output_of
from diffusion_text.testing.languages import MarkovChain, chain_law
from diffusion_text.timing.along_row import Shared
from diffusion_text.types import Model, Params, Process, Timing

CHUNK = 65_536  # positions whose logits exist at a time


@member
class ChainNetwork(ExactNetwork):
  """`ExactNetwork` of a chain, for rows of one document whose tokens all see each other."""

  def _answer(self, params, rows, seen, sees, position, own, queries):
    """The output for each query; the layout is not asked."""
    del sees, position
    language = params["language"]
    law = chain_law(language["log_initial"], language["log_transition"], seen.evidence)
    law = law[:, queries]
    if self.process.reads_logits_as in ("leave_one_out", "score"):
      law = jax.nn.log_softmax(law - own, axis=-1)
    return output_of(self.process, params["process"], law, own, rows.t[:, queries])


def chain_model(
  process: Process, chain: Any, timing: Timing | None = None, **network: Any
) -> tuple[Model, Params]:
  """(a model of a process that knows the chain, its parameters).

  Args:
    process: its parameters are made here.
    chain: what the network knows: anything with `initial`, `transition` and `length`.
    timing: None: one shared time.
    **network: further options of `ExactNetwork`.
  """
  language = MarkovChain(chain.initial, chain.transition, chain.length)
  timing = Shared() if timing is None else timing
  of_process = process.init(jax.random.key(0), facts_of(language))
  model = Model(ChainNetwork(process, **network), process, timing, Full(), chunk=CHUNK)
  return model, exact_params(language, of_process)
