"""The run-time checker of shapes and types, for which an int is a float, as for type checkers.

In tests numpy arrays may stand for arrays of JAX, as they do under `jax.jit`.
"""

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

jaxtyping.Array = jax.Array | np.ndarray
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
