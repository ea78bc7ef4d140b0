"""Processes: what noise is, and how it is undone. One file per family, one line per process here.

A process knows schedules and nothing of networks, trainers or samplers; the contract is
`types.Process`. To add one: its file, its line in this table, its config, its line in
tests/process/conformance_test.py.
"""

from diffusion_text.process.distance import Distance
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.simplex import Simplex
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform

PROCESSES = {
  "distance": Distance,
  "embedding": Embedding,
  "masked": Masked,
  "mixed": Mixed,
  "simplex": Simplex,
  "token_masked": TokenMasked,
  "uniform": Uniform,
}
