"""Readers: how the network is asked while sampling. The contract is `types.Reader`; they compose,
as optax's transforms do.

`reader.other:Other` asks another model. It has no name here, as a config has no second model to
give.
"""

READERS = {
  "whole_row": "diffusion_text.reader.whole_row:WholeRow",
  "cached": "diffusion_text.reader.cached:Cached",
  "window_cache": "diffusion_text.reader.window_cache:WindowCache",
  "suffix_cache": "diffusion_text.reader.window_cache:SuffixCache",
  "delayed_cache": "diffusion_text.reader.delayed_cache:DelayedCache",
  "similar_cache": "diffusion_text.reader.similar_cache:SimilarCache",
  "self_conditioned": "diffusion_text.reader.self_conditioned:SelfConditioned",
  "classifier_free": "diffusion_text.reader.classifier_free:ClassifierFree",
  "mixture": "diffusion_text.reader.mixture:Mixture",
}
