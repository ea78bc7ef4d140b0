"""Windows and proposals that are drawn, for tests of single parts without a network."""

import jax.numpy as jnp
import numpy as np

from diffusion_text.context import Full
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.process.masked import Masked
from diffusion_text.sampler.parts import Candidates
from diffusion_text.sampler.reveal import Proposal, Reveal, View
from diffusion_text.testing import ExactNetwork
from diffusion_text.timing import Shared
from diffusion_text.types import Canvas, Model

MODEL = Model(ExactNetwork(Masked(vocab_size=6)), Masked(vocab_size=6), Shared(), Full())


def view_of(waiting, *, answered=None, step=0, total=None, lengths=None, segment=None, memory=()):
  """What a part sees of a window in which all tokens are to be generated."""
  waiting = jnp.asarray(waiting)
  rows, length = waiting.shape
  keys = token_keys(row_keys(0, rows), length)
  zeros = jnp.zeros(rows, jnp.int32)
  lengths = zeros + length if lengths is None else jnp.asarray(lengths)
  segment = None if segment is None else jnp.asarray(segment)
  canvas = Canvas(
    jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length), bool), keys, zeros, lengths
  )._replace(segment=segment)
  return View(
    sampler=Reveal(),
    model=MODEL,
    params={},
    canvas=canvas,
    keys=keys,
    waiting=waiting,
    answered=waiting if answered is None else jnp.asarray(answered),
    level=waiting.astype(jnp.float32),
    total=zeros + length if total is None else jnp.asarray(total),
    step=zeros + step,
    recorded=jnp.zeros((rows, length)),
    memory=memory,
  )


def candidates_of(view, log_p, memory=()):
  """What a score sees of every token of the window."""
  place = jnp.broadcast_to(jnp.arange(log_p.shape[1]), log_p.shape[:2])
  return Candidates(view.keys, place, jnp.asarray(log_p), memory)


def proposal_of(view, order, log_p, statistics, memories=None):
  """A proposal with the order given, [B, u], and statistics of the distributions."""
  said = {}
  for name, score in statistics.items():
    memory = () if memories is None else memories.get(name, ())
    said[name] = score.across(view, score(candidates_of(view, log_p, memory)))
  nothing = jnp.zeros(order.shape)
  return Proposal(jnp.asarray(order), jnp.zeros(order.shape, jnp.int32), nothing, said)


def drawn(seed, rows=24, length=13, vocab_size=6):
  """(log p [B, u, V] of sure and unsure tokens, an order [B, u], tokens that wait; each row has
  one).
  """
  generator = np.random.default_rng(seed)
  sharp = generator.exponential(3.0, size=(rows, length, 1))
  logits = generator.normal(size=(rows, length, vocab_size)) * sharp
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  waiting = generator.random((rows, length)) < generator.random((rows, 1))
  waiting[:, 5] = True
  order = generator.normal(size=(rows, length))
  return np.float32(log_p), np.float32(order), waiting
