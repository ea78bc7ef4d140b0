"""When training stops early: a preemption, a Ctrl-C, or the end of its time. All processes stop at the same step."""

from __future__ import annotations

import logging
import signal
import threading

import jax
import numpy as np

EXIT_PREEMPTED = (
  42  # after SIGTERM: the launcher starts the run again, and it goes on from its checkpoint
)
EXIT_INTERRUPTED = 130  # after Ctrl-C: the launcher does not

log = logging.getLogger(__name__)


class Stop:
  """Turns SIGTERM and the first Ctrl-C into a question that the loop asks once per step: `with Stop(…) as stop`.

  One process obeys at its next step. Of several, one may be told alone, or a step earlier: preemption then goes through JAX's
  own service, which picks a step that all can reach, and the rest is agreed upon at every `agree_every`th step.
  """

  def __init__(self, agree_every: int):
    self._agree_every = agree_every
    self._signal: int | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> Stop:
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
      # With several processes, JAX's service has the SIGTERM handler and must keep it.
      wanted = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
      self._before = {number: signal.signal(number, self._handle) for number in wanted}
    return self

  def __exit__(self, *_) -> None:
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      if (
        handler is not None
      ):  # None: it was not Python's, as that of JAX's service where one process has it too
        signal.signal(number, handler)
    self._before = {}

  def _handle(self, number, _frame) -> None:
    self._signal = number
    if number == signal.SIGINT:  # a second Ctrl-C ends at once
      signal.signal(number, signal.default_int_handler)
      log.warning(
        "interrupted: this step is finished and saved; press Ctrl-C again to end without saving"
      )
    else:
      log.warning("preempted: this step is finished and saved")

  def status(self, step: int, out_of_time: bool) -> str | None:
    """Why to stop before the update at `step`: "preempted", "interrupted", "out_of_time", or None: go on."""
    preempted, interrupted = self._signal == signal.SIGTERM, self._signal == signal.SIGINT
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      preempted = multihost_utils.reached_preemption_sync_point(step)
      told = np.array([interrupted, out_of_time])
      agreed = step % self._agree_every == 0
      interrupted, out_of_time = (
        multihost_utils.process_allgather(told).any(axis=0) if agreed else (False, False)
      )
    if preempted:
      return "preempted"
    if interrupted:
      return "interrupted"
    return "out_of_time" if out_of_time else None
