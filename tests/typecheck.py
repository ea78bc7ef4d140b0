"""The run-time checker of shapes and types, for which an int is a float, as for type checkers.

In tests numpy arrays may stand for arrays of JAX, as they do under `jax.jit`.
"""

import functools

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

jaxtyping.Array = jax.Array | np.ndarray
check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checker(function):
  """The function that checks its arguments and its result; the checks are made at its first call,
  as most functions of a room are never called in a process.
  """

  @functools.cache
  def checked():
    return check(function)

  @functools.wraps(function)
  def call(*args, **kwargs):
    return checked()(*args, **kwargs)

  return call
