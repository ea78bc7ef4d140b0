"""Samplers: which tokens change when, and to what. One loop (`sampler.loop`) for all of them; the
contract is `types.Sampler`.
"""

# Imported when a config asks: one sampler needs none of the others.
SAMPLERS = {
  "grid": "diffusion_text.sampler.grid:Grid",
  "gaussian": "diffusion_text.sampler.gaussian:GaussianGrid",
  "multistep": "diffusion_text.sampler.multistep:Multistep",
  "tau_leaping": "diffusion_text.sampler.tau_leaping:TauLeaping",
  "reveal": "diffusion_text.sampler.reveal:Reveal",
  "look_ahead": "diffusion_text.sampler.look_ahead:LookAhead",
  "remasking": "diffusion_text.sampler.remasking:Remasking",
  "renoising": "diffusion_text.sampler.renoising:Renoising",
  "routed": "diffusion_text.sampler.routed:Routed",
  "self_correcting": "diffusion_text.sampler.self_correcting:SelfCorrecting",
  "guessed_times": "diffusion_text.sampler.guessed_times:GuessedTimes",
  "adaptive_correction": "diffusion_text.sampler.adaptive_correction:AdaptiveCorrection",
}
