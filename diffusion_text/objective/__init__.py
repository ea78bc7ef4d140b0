"""Objectives: what is minimised, and what is reported. One file per idea, one line per objective
here.

An objective is a frozen dataclass of options; called with (model, params, key, batch, times,
progress) it returns a `types.Loss` and what each token cost. `engine` has what they share, and says
when what is reported as "bound" is one.
"""

from diffusion_text.objective.bound import Bound
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.objective.reweighted import Reweighted
from diffusion_text.objective.score_function import ScoreFunction

OBJECTIVES = {
  "bound": Bound,
  "cross_entropy": CrossEntropy,
  "mse_rounding": EmbeddingLosses,
  "reweighted": Reweighted,
  "score_function": ScoreFunction,
}

__all__ = [
  "OBJECTIVES",
  "Bound",
  "CrossEntropy",
  "EmbeddingLosses",
  "Reweighted",
  "ScoreFunction",
]
