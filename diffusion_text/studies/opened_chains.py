"""What it costs to open the tokens of a Markov chain in calls, computed exactly: the expected cost
of a token given the tokens of earlier calls, and the share of texts that are possible.

Given the nearest open token to its left and to its right, a token of a chain is independent of all
others. So everything follows from the law between two open tokens, and from how far away these are.
No network is asked and nothing is drawn: this is the exact denoiser of masked diffusion, whose
sampler opens each token at a uniformly drawn one of its T calls.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

from diffusion_text.studies.chains import Chain

_LEAST = 1e-300


def bridges(chain: Chain) -> Float[np.ndarray, "L2 V1 V1"]:
  """float64 [L + 2, V + 1, V + 1]: [d, l, r] is the chance of token r, d places behind token l.

  Line V is the place before the row, whose next token has the law of the first one; column V is the
  place behind the row, which comes for certain.
  """
  size, length = len(chain.initial), chain.length
  chances = np.ones((length + 2, size + 1, size + 1))
  chances[0] = np.eye(size + 1)
  chances[1, :size, :size], chances[1, size, :size] = chain.transition, chain.initial
  for distance in range(2, length + 2):
    chances[distance, :, :size] = chances[distance - 1, :, :size] @ chain.transition
  return chances


def costs_by_distance(chain: Chain, unigram: float = 0.0) -> Float[np.ndarray, "L L L"]:
  """float64 [L, L, L]: [i, a - 1, b - 1] is E[-log q(x_i | x_(i-a), x_(i+b))] in nats.

  a = i + 1 is the place before the row, where no token to the left is open, and b = L - i the place
  behind it; what is farther away is 0. q is the exact law, of which the share `unigram` is replaced
  by the frequencies of tokens: a denoiser with a known error.
  """
  size, length = len(chain.initial), chain.length
  chances = bridges(chain)
  law = chain.laws()
  often = chain.frequencies()[:, None]
  right = chances[1 : length + 1, None, :size]
  costs = np.zeros((length, length, length))
  for a in range(1, length + 1):
    joint = chances[a, :, :size, None] * right  # [b, l, v, r]
    said = joint / np.maximum(joint.sum(axis=2, keepdims=True), _LEAST)
    said = (1 - unigram) * said + unigram * often
    cost = -(joint * np.log(np.maximum(said, _LEAST))).sum(axis=2)
    inside, at_end = cost[..., :size].sum(axis=2), cost[0, :, size]  # [b, l] and [l]
    for i in range(a - 1, length):
      left = np.append(law[i - a], 0.0) if a <= i else np.eye(size + 1)[size]
      last = length - 1 - i
      costs[i, a - 1, :last] = inside[:last] @ left
      costs[i, a - 1, last] = at_end @ left
  return costs


def entropy(costs: Float[np.ndarray, "L L L"]) -> float:
  """Nats of a row, from the exact `costs_by_distance`: each token given the one before it."""
  return float(sum(cost[0, len(costs) - 1 - i] for i, cost in enumerate(costs)))


def informations(costs: Float[np.ndarray, "L L L"]) -> Float[np.ndarray, " L"]:
  """float64 [L]: I(X_i; X_-i) of each place in nats, from the exact `costs_by_distance`."""
  last = len(costs) - 1
  alone = [cost[i, last - i] for i, cost in enumerate(costs)]
  known = [cost[0, 0] for cost in costs]
  return np.array(alone) - np.array(known)


def uniform_calls(costs: Float[np.ndarray, "L L L"], calls: int) -> Float[np.ndarray, " L"]:
  """float64 [L]: the expected cost of each place where every token is opened at a uniformly drawn
  one of `calls` calls, given the tokens of earlier calls.
  """
  length = len(costs)
  total = np.zeros(length)
  for call in range(calls):
    near = np.stack([_nearest(call / calls, places, length) for places in range(length)])
    total += np.einsum("ia,iab,ib->i", near, costs, near[::-1], optimize=True) / calls
  return total


def _nearest(share: float, places: int, size: int) -> Float[np.ndarray, " {size}"]:
  """The chance that the nearest open token on a side stands 1, 2, … places away, and beyond the
  `places` of that side.
  """
  law = np.zeros(size)
  closed = (1 - share) ** np.arange(places + 1)
  law[:places], law[places] = share * closed[:places], closed[places]
  return law


def even_calls(costs: Float[np.ndarray, "L L L"], calls: int) -> Float[np.ndarray, " L"]:
  """float64 [L]: as `uniform_calls`, in a random order with L / `calls` tokens per call.

  Raises:
    ValueError: where the calls do not divide the row.
  """
  length = len(costs)
  if length % calls:
    raise ValueError(f"calls={calls} must divide the {length} tokens of a row; use a divisor")
  choose = _log_choose(length - 1)
  opened = np.arange(calls) * (length // calls)
  total = np.zeros(length)
  for i, cost in enumerate(costs):
    sides = []
    for places in (i, length - 1 - i):
      away = np.arange(1, places + 2)
      sides.append((np.minimum(away, places), away <= places))  # places that are known, and open
    (left, left_open), (right, right_open) = sides
    known = left[:, None] + right
    found = left_open[:, None].astype(int) + right_open
    chance = np.zeros(known.shape)
    for some in opened:
      log_ways = choose[length - 1 - known, np.clip(some - found, -1, length - 1)]
      chance += np.exp(log_ways - choose[length - 1, some]) / calls
    total[i] = (chance * cost[: len(left), : len(right)]).sum()
  return total


def _log_choose(most: int) -> Float[np.ndarray, "M M1"]:
  """log of n over k, for n and k up to `most`; -inf where k > n, and at the last k, which is -1."""
  table = np.full((most + 1, most + 2), -np.inf)
  for n in range(most + 1):
    for k in range(n + 1):
      table[n, k] = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
  return table


def given_calls(
  costs: Float[np.ndarray, "L L L"], calls: Int[np.ndarray, "R L"]
) -> Float[np.ndarray, " R"]:
  """float64 [R]: the expected cost of a row whose tokens are opened at these calls."""
  length = calls.shape[1]
  place = np.arange(length)
  total = np.zeros(len(calls))
  for i in range(length):
    earlier = calls < calls[:, i : i + 1]
    left = np.where(earlier[:, :i], place[:i], -1).max(axis=1, initial=-1)
    right = np.where(earlier[:, i + 1 :], place[i + 1 :], length).min(axis=1, initial=length)
    total += costs[i, i - left - 1, right - i - 1]
  return total


def possible_shares(
  chain: Chain, calls: int, enough: float | None = None
) -> Float[np.ndarray, "T L"]:
  """float32 [T, L]: the share of possible texts among those that are drawn in 1 … T calls, for rows
  of 1 … L tokens. Each token is opened at a uniformly drawn call and drawn from its exact law given
  the tokens of earlier calls, independently of those of the same call. T is `calls`, or less where
  at most the share `enough` of the texts of L tokens is impossible before.

  Between two open tokens a text goes on independently of the rest. With R calls left, a token opens
  at the next one with chance 1 / R; those that do cut their gap into smaller ones, which have R - 1
  calls left. `good` [n, l, r] is the chance that a gap of n tokens between l and r ends well.
  """
  size, length = len(chain.initial), chain.length
  chances = bridges(chain).astype(np.float32)
  good = np.zeros((length + 1, size + 1, size + 1), np.float32)
  good[0] = chances[1] > 0
  shares: list[np.ndarray] = []
  for left in range(1, calls + 1):
    good = _one_call_more(chances, good, 1 / left)
    shares.append(good[1:, size, size])
    if enough is not None and 1 - shares[-1][-1] <= enough:
      break
  return np.stack(shares)


def _one_call_more(
  chances: Float[np.ndarray, "L2 V1 V1"], good: Float[np.ndarray, "L1 V1 V1"], opens: float
) -> Float[np.ndarray, "L1 V1 V1"]:
  """`good` of `possible_shares` with one call more, at which each token opens with this chance."""
  count, size = len(good) - 1, good.shape[1] - 1
  stays = np.float32(1 - opens) ** np.arange(count + 1, dtype=np.float32)
  # Of the gap of each length n: [j, n, l, r, v], the chance that its j-th token is v, opens now,
  # and that all before it ends well. The 0-th is the open token l itself.
  before = np.zeros((count + 1, count + 1, size + 1, size + 1, size + 1), np.float32)
  before[0] = np.eye(size + 1, dtype=np.float32)[:, None, :]
  closed = stays[:, None, None] * good
  now = np.zeros_like(good)
  now[0] = good[0]
  for j in range(1, count + 1):
    # All gaps of j tokens or more, from the last token that opens before the j-th one.
    reached = np.einsum("inlru,iuv->nlrv", before[:j, j:], closed[j - 1 :: -1][:j], optimize=True)
    behind = chances[count + 1 - j : 0 : -1][::-1]  # [n, v, r], of n = j … count
    whole = chances[j + 1 : count + 2]  # [n, l, r]
    law = chances[j][None, :, None, :size] * behind[:, None, :size].transpose(0, 1, 3, 2)
    law = law / np.maximum(whole[..., None], np.float32(1e-30))
    before[j, j:, :, :, :size] = np.float32(opens) * law * reached[..., :size]
    # Gaps of exactly j tokens end at their right neighbour.
    now[j] = np.einsum("ilru,iur->lr", before[: j + 1, j], closed[j::-1], optimize=True)
  return now
