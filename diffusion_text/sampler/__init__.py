"""Samplers: how to walk from noise back to text. One loop (`loop.sample`) for all; a policy decides who moves at each call.

A policy is a frozen dataclass with `plan`, `unfinished`, `times` and `advance` (contract: `loop.Policy`).
"""

from diffusion_text.sampler.ancestral import Ancestral, EventDriven, TauLeaping
from diffusion_text.sampler.correct import PredictorCorrector, SelfCorrecting
from diffusion_text.sampler.multistep import Multistep
from diffusion_text.sampler.order import Ordered
from diffusion_text.sampler.predicted_times import PredictedTimes
from diffusion_text.sampler.remask import Remasking
from diffusion_text.sampler.routed import Routed

SAMPLERS = {
  "ancestral": Ancestral,
  "event_driven": EventDriven,
  "multistep": Multistep,
  "ordered": Ordered,
  "predicted_times": PredictedTimes,
  "tau_leaping": TauLeaping,
  "remasking": Remasking,
  "predictor_corrector": PredictorCorrector,
  "routed": Routed,
  "self_correcting": SelfCorrecting,
}
