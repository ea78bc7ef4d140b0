"""The time that training has taken and will take, over restarts: checkpoints hold the clock."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Mapping


class Clock:
  """Seconds of training, rates, time left and device-hours.

  Training time stands still within `paused()` (evaluation, checkpoints). Device-hours go on,
  because the devices are reserved. Both continue from the last process; the time between two
  processes is not counted.
  """

  def __init__(
    self, *, devices: int = 1, window: int = 50, now: Callable[[], float] = time.monotonic
  ):
    """Makes a clock that does not run yet.

    Args:
      devices: Number of devices of the whole run.
      window: Number of steps that rates are averaged over.
      now: A clock in seconds, which tests may replace.
    """
    if devices < 1 or window < 1:
      raise ValueError(f"devices={devices} and window={window} must be at least 1")
    self._devices = devices
    self._now = now
    self._earlier = {"seconds": 0.0, "device_seconds": 0.0}  # times of earlier processes
    self._start: float | None = None
    self._paused_since: float | None = None
    self._paused = 0.0
    self._tokens = 0
    self._recent: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=window + 1)

  def start(self) -> None:
    """Starts counting. Further calls have no effect."""
    if self._start is None:
      self._start = self._now()

  def _elapsed(self) -> tuple[float, float]:
    """(training seconds, all seconds) of this process."""
    if self._start is None:
      return 0.0, 0.0
    now = self._now()
    paused = self._paused + (0.0 if self._paused_since is None else now - self._paused_since)
    return now - self._start - paused, now - self._start

  @property
  def seconds(self) -> float:
    """The training time of this and all earlier processes."""
    return self._earlier["seconds"] + self._elapsed()[0]

  @property
  def device_hours(self) -> float:
    """The hours of the run times its devices, evaluation and checkpoints included."""
    return (self._earlier["device_seconds"] + self._devices * self._elapsed()[1]) / 3600

  @contextlib.contextmanager
  def paused(self):
    """A context in which training time stands still. May be nested."""
    outer = self._paused_since is None
    if outer:
      self._paused_since = self._now()
    try:
      yield
    finally:
      if outer:
        self._paused += self._now() - self._paused_since
        self._paused_since = None

  def tick(self, step: int, tokens: int) -> None:
    """Records that `step` updates are done, the last of them with `tokens` tokens."""
    self._tokens += tokens
    self._recent.append((self.seconds, step, self._tokens))

  def rates(self) -> dict[str, float]:
    """{"steps_per_second", "tokens_per_second"}, averaged over the last steps.

    {} before the second tick, so that compilation never counts.
    """
    if len(self._recent) < 2 or self._recent[-1][0] <= self._recent[0][0]:
      return {}
    (t0, step0, tokens0), (t1, step1, tokens1) = self._recent[0], self._recent[-1]
    return {
      "steps_per_second": (step1 - step0) / (t1 - t0),
      "tokens_per_second": (tokens1 - tokens0) / (t1 - t0),
    }

  def seconds_left(self, steps: int, max_seconds: float | None = None) -> float | None:
    """The training time until `steps` updates or `max_seconds`, whichever comes first.

    None before the rate is known.
    """
    rate = self.rates().get("steps_per_second")
    if not rate:
      return None
    left = max(steps - self._recent[-1][1], 0) / rate
    return left if max_seconds is None else max(min(left, max_seconds - self.seconds), 0.0)

  def to_dict(self) -> dict[str, float]:
    """The part of a checkpoint about time: "seconds" and "device_seconds"."""
    return {"seconds": self.seconds, "device_seconds": self.device_hours * 3600}

  def from_dict(self, state: Mapping[str, float]) -> None:
    """Continues from `to_dict` of an earlier process. Must be called before `start`.

    Raises:
      RuntimeError: If the clock has started.
    """
    if self._start is not None:
      raise RuntimeError(
        "the clock has started; call from_dict before start (restore before train)"
      )
    self._earlier = {name: float(state[name]) for name in self._earlier}
