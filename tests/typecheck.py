"""The run-time checker of shapes and types, for which an int is a float, as for type checkers.

In tests numpy arrays may stand for arrays of JAX, as they do under `jax.jit`.

The import hook of jaxtyping decorates every function of a room with `jaxtyping.jaxtyped`, whose
checks took an eighth of the time of a test that samples: it binds the arguments, checks the
parameters twice, and makes two functions of every one that it decorates. The one here checks a call
once, and leaves alone what has no annotation; most such functions are made anew at every call of
the function around them.
"""

import dataclasses
import functools
import inspect
import typing

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

jaxtyping.Array = jax.Array | np.ndarray
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
whole = jaxtyping.jaxtyped


def checked(function):
  """The function with its arguments and its result checked, the sizes of a call by one name alike.

  Of a class: the class itself; the arguments of a dataclass are checked.
  """
  if inspect.isclass(function):
    if dataclasses.is_dataclass(function) and "__init__" in vars(function):
      function.__init__ = checked(function.__init__)
    return function
  if not getattr(function, "__annotations__", None):
    return function
  try:
    hints = typing.get_type_hints(function, include_extras=True)
  except Exception:  # names that only type checkers see, which jaxtyping skips
    return whole(function, typechecker=checker)
  if any("{" in str(hint) for hint in hints.values()):  # a size that is computed from arguments
    return whole(function, typechecker=checker)
  function.__annotations__ = hints
  inner = checker(function)

  @functools.wraps(function)
  def call(*args, **kwargs):
    if jaxtyping.config.jaxtyping_disable:
      return function(*args, **kwargs)
    with whole("context"):
      return inner(*args, **kwargs)

  return call


def jaxtyped(*, typechecker):
  """`checked`, as the import hook asks for it."""
  del typechecker
  return checked


jaxtyping.jaxtyped = jaxtyped
