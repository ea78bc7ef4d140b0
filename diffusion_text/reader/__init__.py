"""Readers: how the network is asked while sampling. The contract is `types.Reader`; one reader may
hold another, as optax's transforms do.

`reader.other:Other` asks a second model. It has no name here, as a config describes one model.
"""

READERS = {
  "whole_row": "diffusion_text.reader.whole_row:WholeRow",
  "cached": "diffusion_text.reader.cached:Cached",
  "window_cache": "diffusion_text.reader.window_cache:WindowCache",
  "suffix_cache": "diffusion_text.reader.window_cache:SuffixCache",
  "delayed_cache": "diffusion_text.reader.delayed_cache:DelayedCache",
  "similar_cache": "diffusion_text.reader.similar_cache:SimilarCache",
  "layer_cache": "diffusion_text.reader.layer_cache:LayerCache",
  "roll_out_cache": "diffusion_text.reader.roll_out_cache:RollOutCache",
  "self_conditioned": "diffusion_text.reader.self_conditioned:SelfConditioned",
  "classifier_free": "diffusion_text.reader.classifier_free:ClassifierFree",
  "mixture": "diffusion_text.reader.mixture:Mixture",
}
