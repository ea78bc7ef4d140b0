"""What a test of a member calls, also from outside of this project.

Languages of which everything is known, the exact network, and one check per choice: each raises
AssertionError with the law, what was found and what was expected.
"""

from diffusion_text.testing.check_context import check_context
from diffusion_text.testing.check_objective import check_objective
from diffusion_text.testing.check_process import check_process
from diffusion_text.testing.check_reader import check_reader
from diffusion_text.testing.check_sampler import check_sampler
from diffusion_text.testing.check_timing import check_timing
from diffusion_text.testing.exact_model import exact_model, excess_of_bound, facts_of
from diffusion_text.testing.exact_network import ExactNetwork, exact_params
from diffusion_text.testing.languages import Enumerable, MarkovChain

__all__ = [
  "Enumerable",
  "ExactNetwork",
  "MarkovChain",
  "check_context",
  "check_objective",
  "check_process",
  "check_reader",
  "check_sampler",
  "check_timing",
  "exact_model",
  "exact_params",
  "excess_of_bound",
  "facts_of",
]
