"""Objectives: what is minimised, and what is reported. One file per idea, one line per objective here.

An objective is a frozen dataclass over a process and a timing; called with (process params, key, batch, progress, predict) it
returns a `types.Loss`. Only `Bound` may be reported as a likelihood; the others are surrogates that train well.
"""

from diffusion_text.objective.anchored import Anchored
from diffusion_text.objective.bound import Bound
from diffusion_text.objective.cross_entropy import CrossEntropy
from diffusion_text.objective.curriculum import GaussianCurriculum
from diffusion_text.objective.embedding_losses import EmbeddingLosses
from diffusion_text.objective.mask_agnostic import MaskAgnostic
from diffusion_text.objective.reinforce import ScoreFunction
from diffusion_text.objective.reinforced import ReinforcedConditioning
from diffusion_text.objective.reweighted import Reweighted

OBJECTIVES = {
  "anchored": Anchored,
  "bound": Bound,
  "cross_entropy": CrossEntropy,
  "gaussian_curriculum": GaussianCurriculum,
  "mask_agnostic": MaskAgnostic,
  "mse_rounding": EmbeddingLosses,
  "reinforce": ScoreFunction,
  "reinforced_conditioning": ReinforcedConditioning,
  "reweighted": Reweighted,
}
