"""Samplers: how to walk from noise back to text. One loop (`loop.sample`) for all; a policy decides who moves at each call.

A policy is a frozen dataclass with `plan`, `unfinished`, `times` and `advance` (contract: `loop.Policy`).
"""

from diffusion_text.sampler.ancestral import Ancestral, EventDriven
from diffusion_text.sampler.order import Ordered

SAMPLERS = {"ancestral": Ancestral, "event_driven": EventDriven, "ordered": Ordered}
