"""Members that need more than one contract, or that serve one paper. None is imported before a
config asks for it by name: the registry reads this table.
"""

CONTRIB: dict[str, dict[str, str]] = {
  "process": {},
  "timing": {
    "by_frequency": "diffusion_text.contrib.frequency_times:ByFrequency",
    "given": "diffusion_text.contrib.any_order:Given",
    "spindle": "diffusion_text.contrib.frequency_times:Spindle",
  },
  "context": {
    "any_order": "diffusion_text.contrib.any_order:AnyOrder",
    "next_token_row": "diffusion_text.contrib.wavefront:NextTokenRow",
  },
  "objective": {
    "anchored": "diffusion_text.contrib.anchored:Anchored",
    "coupled": "diffusion_text.contrib.coupled:Coupled",
    "gaussian_curriculum": "diffusion_text.contrib.gaussian_curriculum:GaussianCurriculum",
    "joint_layer": "diffusion_text.contrib.joint_layer:JointLayer",
    "mask_agnostic": "diffusion_text.contrib.mask_agnostic:MaskAgnostic",
    "masked_inputs": "diffusion_text.contrib.masked_inputs:MaskedInputs",
    "masked_mean": "diffusion_text.contrib.masked_mean:MaskedMean",
    "predicted_times": "diffusion_text.contrib.predicted_times:PredictedTimesLosses",
    "reinforced_conditioning": (
      "diffusion_text.contrib.reinforced_conditioning:ReinforcedConditioning"
    ),
    "settled_tokens": "diffusion_text.contrib.settled_tokens:SettledTokens",
    "unrolled": "diffusion_text.contrib.unrolled:Unrolled",
    "with_next_token": "diffusion_text.contrib.next_token_beside:WithNextToken",
  },
  "model": {"recurrent_depth": "diffusion_text.contrib.recurrent_depth:RecurrentDepth"},
  "reader": {
    "unread": "diffusion_text.contrib.context_bigrams:Unread",
    "wavefront": "diffusion_text.contrib.wavefront:WavefrontReader",
  },
  "sampler": {
    "context_bigrams": "diffusion_text.contrib.context_bigrams:ContextBigrams",
    "joint": "diffusion_text.contrib.joint_sampler:Joint",
    "predicted_times": "diffusion_text.contrib.predicted_times:PredictedTimes",
    "redraw": "diffusion_text.contrib.unrolled:Redraw",
    "speculative": "diffusion_text.contrib.speculative:Speculative",
    "wavefront": "diffusion_text.contrib.wavefront:Wavefront",
  },
}
