"""The early end of training by preemption, Ctrl-C or a time limit, on all processes together."""

from __future__ import annotations

import logging
import signal
import threading

import jax
import numpy as np

# After SIGTERM: the launcher starts the run again, and the run continues from its checkpoint.
EXIT_PREEMPTED = 42
# After Ctrl-C: the launcher does not start the run again.
EXIT_INTERRUPTED = 130

log = logging.getLogger(__name__)


class Stop:
  """Keeps SIGTERM and the first Ctrl-C until the loop asks, once per step: `with Stop(…) as stop`.

  A run of one process stops at its next step. With several processes, a signal may reach only one
  of them, or reach them at different steps. A preemption then goes through JAX's own service, which
  chooses a step that all can reach. For the other reasons the processes agree at every
  `agree_every`th step.
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
      # None is a handler that Python did not set, for example that of JAX's service.
      if handler is not None:
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
    """The reason to stop before the update at `step`, None to go on.

    It is "preempted", "interrupted" or "out_of_time".
    """
    preempted = self._signal == signal.SIGTERM
    interrupted = self._signal == signal.SIGINT
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      preempted = multihost_utils.reached_preemption_sync_point(step)
      here = np.array([interrupted, out_of_time])
      interrupted = out_of_time = False
      if step % self._agree_every == 0:
        interrupted, out_of_time = multihost_utils.process_allgather(here).any(axis=0)
    if preempted:
      return "preempted"
    if interrupted:
      return "interrupted"
    return "out_of_time" if out_of_time else None
