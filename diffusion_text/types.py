"""The contracts. The one file that every other file may import; it imports none of ours.

Axis letters, used in names (`ids_BxL`, `logits_BxLxV`) everywhere and explained only here:

  B  batch rows                L  positions of a row         V  clean vocabulary (the noise symbol, if any, has id V)
  D  width of the network      H  attention heads            G  key/value heads (G divides H)
  K  width of one head         F  width of the MLP           E  width of a diffusion embedding
  N  a flat list of positions  S  sampling steps             C  positions in one chunk

Three ideas hold the project together (see README):
  1. every token has its own time: `t` broadcasts to [B, L]; 0 = clean, 1 = noise;
  2. the network predicts the clean token: `denoise(inputs, t).logits`, for every process;
  3. one rule, over `Layout`, decides who sees whom.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array
Key = jax.Array  # a typed key (`jax.random.key`), or an array of them
Time = jax.Array  # float32, broadcastable to [B, L]; 0 = clean, 1 = noise
Params = Any  # a nested dict of arrays
State = Any  # z_t: ids [B, L] for discrete processes, vectors [B, L, E] for continuous ones


def _pytree(cls):
  """Frozen dataclass whose fields are all pytree children (None is an empty one)."""
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Layout:
  """Who sees whom, as three integers per position (DESIGN, idea 3).

  Query q may see key k iff
    segment[q] == segment[k]  and
    ((block[q] == block[k] and noisy[q] == noisy[k]) or (not noisy[k] and block[k] < block[q])).

  Each field is int32 `[B, L]` or `[1, L]`, or None, which means "the same for every position". So `Layout()` is
  bidirectional attention over the whole row, at no cost.
  """

  segment: Array | None = None
  block: Array | None = None
  noisy: Array | None = None  # 1 = noisy, 0 = clean


@_pytree
class Inputs:
  """What the network reads at each position: hard tokens, soft tokens of a few candidates, or vectors.

  ids: int32 [B, L], below the process's `input_size`; or int32 [B, L, M], M tokens that are read as one soft token; None for vectors.
  position: int32 [B, L] or [1, L], the rotary position of each token; None means 0 … L-1.
  weights: float32 [B, L, M], the share of each of the M tokens (they sum to 1); None when ids is [B, L]. The network embeds
  Σ_m weights · embedding[ids]: what softmax over V would give, at the cost of M.
  vectors: float32 [B, L, input_size], read as Σ_m vectors[m] · embedding[m], whatever the m are: the vocabulary (dense soft tokens,
  embedded by the table that embeds ids), or the coordinates of a diffusion embedding (then the table is a linear map).
  recalled: [B, L, D], the network's own last answer as it reads it (`Prediction.recall`), and recalls: bool [B, L], where there was one;
  both None at a first call. Only a network that conditions on itself takes them, and it reads none where t == 0.
  """

  ids: Array | None = None
  position: Array | None = None
  weights: Array | None = None
  vectors: Array | None = None
  recalled: Array | None = None
  recalls: Array | None = None

  @property
  def shape(self) -> tuple[int, int]:
    """(B, L)."""
    return (self.ids if self.vectors is None else self.vectors).shape[:2]


class Auxiliary(NamedTuple):
  """Losses of the network's own, whatever it is trained for. cost: float32 scalar per token, added to the mean that is minimised;
  sums: name -> float32 scalar per token, what is reported of it."""

  cost: Array
  sums: Mapping[str, Array]


class Prediction(NamedTuple):
  """The network's answer, before the vocabulary is touched.

  features [B, L, D]; `unembed(features[..., D]) -> logits[..., V]` in float32. Kept apart so that whoever reads the answer
  pays for the logits of those positions only: at V = 32k the unembedding is most of the work.
  anchor: the answer of a first stage that the network itself reads on (ADLM); None for a network of one stage.
  before: where an objective reads it twice, its first answer at the same state, and bool [B], the rows that were told of it; else None.
  recall: of a network that conditions on itself, the map from estimates [N, estimate_size] (`Process.estimate`) to what it reads of them
  at its next call, [N, D]; linear, so that estimates over V need not be kept. None for the others.
  auxiliary: what its routers add to the loss; None if it has none.
  """

  features: Array
  unembed: Callable[[Array], Array]
  anchor: Prediction | None = None
  recall: Callable[[Array], Array] | None = None
  auxiliary: Auxiliary | None = None
  before: tuple[Prediction, Array] | None = None

  @property
  def logits(self) -> Array:
    """[B, L, V] float32: unnormalised log-probabilities of the clean token at every position."""
    return self.unembed(self.features)


@_pytree
class Batch:
  """One batch of token rows; numpy arrays on the host, global jax arrays on the devices.

  ids: int32 [B, L], each below V.
  given: bool [B, L], tokens that are known: t = 0, never scored, never altered. None: no token is given.
  hidden: bool [B, L], those of the given tokens that the network is not shown: noise at t = 1. None: it is shown all of them.
  weights: float32 [B, L], 0 = padding. None: every token counts 1.
  segment: int32 [B, L], the document of each token within its row; padding has one of its own. None: one document.
  """

  ids: Array
  given: Array | None = None
  weights: Array | None = None
  segment: Array | None = None
  hidden: Array | None = None


@_pytree
class Progress:
  """Where in training a loss is asked for.

  step: int32 scalar, the optimizer step. part, parts: this is microbatch `part` of `parts` of the step's global batch;
  draws that must be spread evenly over the whole batch (low-discrepancy times) need both.
  """

  step: Array | int = 0
  part: Array | int = 0
  parts: int = dataclasses.field(default=1, metadata={"static": True})


class Loss(NamedTuple):
  """A loss as sums, so that microbatches, devices and evaluation batches add up without bias.

  total: float32 scalar, summed over tokens (nats if the objective is a bound); what is minimised is total / count.
  count: float32 scalar, the weight of the tokens that were scored; does not depend on params.
  sums: name -> float32 scalar; the trainer reports sum / count under that name.
  """

  total: Array
  count: Array
  sums: Mapping[str, Array]


class LossFn(Protocol):
  """All that the trainer knows of diffusion."""

  def __call__(self, params: Params, key: Key, batch: Batch, progress: Progress) -> Loss: ...


class Denoise(Protocol):
  """A network with its parameters and layout bound: a distribution over the clean token at every position."""

  def __call__(self, inputs: Inputs, t: Time) -> Prediction: ...


class Predict(Protocol):
  """The network with its parameters (and dropout) bound, the layout still open: what an objective is given."""

  def __call__(self, inputs: Inputs, t: Time, layout: Layout) -> Prediction: ...


class Times(NamedTuple):
  """One draw of a timing.

  t: float32 [B, L] or [B, 1], the time of each token. speed: broadcastable to t, dt/dτ over the shared clock τ, so that
  E[speed · rate] over τ is the bound. layout: who sees whom in the rows that the network will read; one with a `noisy` field is of
  2L positions, the noisy row and then its clean copy. shifted: position i reads the clean token i - 1 instead of z_i. told: the times that
  the network is told, if not t: where t depends on the tokens, it would give them away. expected: [B, L], the loss that a learned timing
  expects of each token at its time (`LearnedTimes`). clock: [B, 1], τ of a timing that learns to predict times from it (`PredictsTimes`).
  """

  t: Array
  speed: Array
  layout: Layout
  shifted: bool = False
  told: Array | None = None
  expected: Array | None = None
  clock: Array | None = None


class Process(Protocol):
  """A corruption of clean tokens and its reversal. Pure; `params` is {} when nothing is learned.

  Every method but `prior`, `corrupt` and `ends` is elementwise over positions: it also accepts flat lists of positions [N] (ids [N],
  state [N, …], t [N], logits [N, V]), which is how callers pay for the logits of few positions only.
  """

  vocab_size: int  # V
  input_size: int  # ids that the network reads: V, or V + 1 with a noise symbol
  estimate_size: int  # numbers per token of `estimate`

  def init(self, key: Key) -> Params:
    """Learned embedding or schedule; {} if nothing is learned."""

  def prior(self, params: Params, key: Key, shape: tuple[int, ...]) -> State:
    """z at t = 1."""

  def corrupt(self, params: Params, key: Key, ids: Array, t: Time) -> State:
    """A draw of q(z_t | ids); where t == 0 it is the clean state exactly."""

  def inputs(self, params: Params, state: State, t: Time) -> Inputs:
    """What the network reads."""

  def scored(self, params: Params, state: State, t: Time) -> Array:
    """bool [B, L]: False only where `rate` is zero whatever the logits, so that they need not be computed."""

  def estimate(self, params: Params, state: State, t: Time, logits: Array) -> Array:
    """[B, L, estimate_size]: the guess of the clean token that a network which conditions on itself is told at its next call."""

  def rate(self, params: Params, ids: Array, state: State, t: Time, logits: Array) -> Array:
    """[B, L] nats per unit time: the integrand of the bound."""

  def ends(self, params: Params, key: Key, ids: Array, denoise: Denoise) -> Array:
    """[B, L] nats: prior and reconstruction terms of the bound; zeros where the process has exact ends."""

  def moves(self, params: Params, keys: Key, state: State, t: Time, s: Time) -> Array:
    """bool [B, L]: False only where `step` with the same keys leaves the state as it is, whatever the logits."""

  def step(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    """A draw of p(z_s | z_t), s <= t elementwise; `keys` holds one key per position, so no token depends on its batch."""

  def decode(self, params: Params, state: State) -> Array:
    """[B, L] int32: the clean ids, below V, that a state at t = 0 stands for."""


@runtime_checkable
class Reveals(Protocol):
  """What orders and event-driven decoding ask of a process besides `Process`: tokens that are revealed once, in any order."""

  def draw(self, params: Params, keys: Key, state: State, logits: Array) -> State:
    """A clean token at every position that is still noise, whatever the time."""

  def arrival(self, params: Params, keys: Key, grid: Array) -> Array:
    """int32 [B, L]: the step of the grid [S + 1, L] at which each token would be revealed; same law as `moves` step by step."""


@runtime_checkable
class Renoises(Protocol):
  """What correcting samplers ask of a process besides `Process`: a guess of the clean tokens, and noise upon it, token by token."""

  def guess(self, params: Params, keys: Key, state: State, logits: Array, t: Time) -> Array:
    """int32 ids: a draw of the clean token at every position given the state (its own evidence included)."""

  def renoise(self, params: Params, keys: Key, ids: Array, t: Time) -> State:
    """A draw of q(z_t | ids) with one key per position; where t == 0 it is the clean state exactly."""


@runtime_checkable
class Leaps(Protocol):
  """What tau-leaping asks of a process besides `Process`."""

  def leap(self, params: Params, keys: Key, state: State, logits: Array, t: Time, s: Time) -> State:
    """One Euler step of the reverse jump process: jump rates frozen at time t for the whole of t - s, at most one jump."""


@runtime_checkable
class LearnedNoise(Protocol):
  """What the score-function gradient asks of a process whose corruption may depend on parameters that are trained (`learned`)."""

  learned: bool

  def log_corruption(self, params: Params, ids: Array, state: State, t: Time) -> Array:
    """[B, L] nats: log q(z_t | ids), differentiable in params."""


@runtime_checkable
class FitsTimes(Protocol):
  """A process that may learn how fast its tokens are lost, from what each time costs."""

  def fit_times(self, params: Params, t: Time, rate: Array) -> Array:
    """Zeros [...] to add to a loss of t [...]; their gradient fits the parameters of the path to rates [...] in nats per unit time."""


class Timing(Protocol):
  """The choice of a time for every token, and nothing else: any timing goes with any process.

  sampled_in_blocks: tokens of a block, if a sampler should finish one block after the other; None: the whole row together.
  shifted: position i reads the clean token i - 1. clipped: the times drawn give a bound under the linear schedule only.
  """

  sampled_in_blocks: int | None
  shifted: bool
  clipped: bool

  def draw(self, key: Key, batch: Batch, progress: Progress) -> Times:
    """Times for a training or evaluation batch, as if no token were given (the objective sets those to t = 0)."""

  def grid(self, steps: int, length: int) -> Array:
    """[steps + 1, length] float32 from 1 to 0: the times that a sampler visits."""

  def scoring(self) -> Timing:
    """The timing under which the bound is reported (training may use times that give none)."""

  def within_block(self) -> Timing:
    """The timing that a sampler walks: that of one block for timings in blocks, this one for the others."""

  def denoiser(self, predict: Predict, segment: Array | None, noise: Inputs) -> Denoise:
    """How a sampler reads the network at the times that it visits. noise: the inputs [1, L] of the prior."""


@runtime_checkable
class LearnedTimes(Timing, Protocol):
  """A timing with parameters, `params["timing"]`: until they are bound it is the timing of their start.

  Its speed and what it expects are differentiable in them, its times are not. An objective holds the speed constant in what it costs, and
  adds zeros whose gradient fits them: that of cost · log speed, if it adds up rates, or of (expected - loss)² / 2, if it does not."""

  def init(self, key: Key) -> Params:
    """Its parameters at the start."""

  def bind(self, params: Params) -> Timing:
    """The timing as it stands."""


@runtime_checkable
class PredictsTimes(LearnedTimes, Protocol):
  """A learned timing that predicts, from what the network answered, which times the tokens of a row should have next.

  guess: what is known of the tokens, as the network reads clean ones; clock: [B, 1]; segment: of the row, or None."""

  def fit(
    self, guess: Inputs, clock: Array, cost: Array, counts: Array, segment: Array | None
  ) -> Array:
    """float32 [B, L] to add to a loss, 0 where not counts (bool [B, L]); its gradient fits the parameters to the cost [B, L] of tokens."""

  def next_times(self, guess: Inputs, clock: Array, segment: Array | None) -> Time:
    """[B, L] in [0, 1], for the clock that comes next."""


class DataIterator(Protocol):
  """Endless batches, with a position that can be saved."""

  def __next__(self) -> Batch: ...

  def get_state(self) -> bytes: ...

  def set_state(self, state: bytes) -> None: ...


class Tokenizer(Protocol):
  """Text to ids and back, without loss for text that it knows."""

  vocab_size: int  # V

  def encode(self, text: str) -> Any:
    """int32 [L]. Raises ValueError, with the character and its place, for text that it cannot hold."""

  def decode(self, ids: Any) -> str: ...

  def to_bytes(self) -> bytes:
    """All that is needed to build it again; saved beside every checkpoint."""
