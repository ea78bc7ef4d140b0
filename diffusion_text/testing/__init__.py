"""What a test of a member calls, also from outside of this project.

Languages of which everything is known, the exact network, and one check per choice.
"""

from diffusion_text.testing.exact_network import ExactNetwork, exact_params
from diffusion_text.testing.languages import Enumerable, MarkovChain

__all__ = ["Enumerable", "ExactNetwork", "MarkovChain", "exact_params"]
