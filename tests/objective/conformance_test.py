"""Every objective × the laws of `testing.check_objective`. One line per objective."""

import numpy as np
import pytest

from diffusion_text.context import NextToken
from diffusion_text.contrib import CONTRIB
from diffusion_text.contrib.anchored import Anchored
from diffusion_text.contrib.coupled import Coupled
from diffusion_text.contrib.mask_agnostic import MaskAgnostic
from diffusion_text.contrib.masked_inputs import MaskedInputs
from diffusion_text.contrib.masked_mean import MaskedMean
from diffusion_text.contrib.reinforced_conditioning import ReinforcedConditioning
from diffusion_text.contrib.settled_tokens import SettledTokens
from diffusion_text.contrib.unrolled import Unrolled
from diffusion_text.objective import (
  OBJECTIVES,
  Bound,
  CrossEntropy,
  EmbeddingLosses,
  Reweighted,
  ScoreFunction,
)
from diffusion_text.process.embedding import Embedding
from diffusion_text.process.masked import Masked
from diffusion_text.process.mixed import Mixed
from diffusion_text.process.token_masked import TokenMasked
from diffusion_text.process.uniform import Uniform
from diffusion_text.testing.check_objective import check_objective
from diffusion_text.testing.exact_model import exact_model
from diffusion_text.testing.languages import Enumerable
from diffusion_text.timing import AtNoise, Hyperschedule

LANGUAGE = Enumerable.dirichlet(0, 0.5, 3, 4)
MASKED = Masked(vocab_size=3)
VECTORS = Embedding(vocab_size=3, width=4)
HYBRID, WAVE = Mixed(vocab_size=3, mixing="gamma"), Hyperschedule(kind="wave", width=1)
# That the reported bound is tight is a law of processes and timings, tested there.
LAWS = ("options", "fits", "shapes", "weights", "observed", "microbatches", "costs", "groups")
NEXT_TOKEN = {"timing": AtNoise(), "context": NextToken(), "answer_shift": 1}
ROWS = {  # objective, process, options of the exact model
  "bound": (Bound(auxiliary=0.01, auxiliary_steps=10), MASKED, {}),
  "cross_entropy": (CrossEntropy(weighting="inverse_time", focusing=1.0), MASKED, {}),
  "mse_rounding": (EmbeddingLosses(anchor_weight=1.0), VECTORS, {}),
  "reweighted": (Reweighted(), Mixed(vocab_size=3), {}),
  "score_function": (ScoreFunction(), TokenMasked(vocab_size=3), {}),
  "anchored": (Anchored(threshold=1), MASKED, {"staged": True}),
  "mask_agnostic": (MaskAgnostic(appended=2), MASKED, {}),
  "coupled": (Coupled(weighting="linear", linear_steps=50), MASKED, {}),
  "masked_inputs": (MaskedInputs(), MASKED, NEXT_TOKEN),
  "masked_mean": (MaskedMean(weighting="inverse_time"), MASKED, {}),
  "unrolled": (Unrolled(draws=True), Uniform(vocab_size=3, prediction="posterior"), {}),
  "settled_tokens": (SettledTokens(block=2), HYBRID, {"timing": WAVE}),
  "reinforced_conditioning": (ReinforcedConditioning(), VECTORS, {"self_conditioning": 0.5}),
}


@pytest.mark.parametrize("name", ROWS)
def test_laws(name):
  objective, process, options = ROWS[name]
  model, params = exact_model(process, LANGUAGE, **options)
  # The published mean is over the noisy tokens of a microbatch.
  laws = [law for law in LAWS if name != "masked_mean" or law != "microbatches"]
  check_objective(objective, model, params, LANGUAGE, only=laws)


def test_every_objective_has_a_row():
  """Four have tests of their own: one reads soft tokens, one needs a network that makes another,
  one trains a layer beside the network, one reads clean copies that no exact network answers.
  """
  elsewhere = {"gaussian_curriculum", "joint_layer", "predicted_times", "with_next_token"}
  assert {*OBJECTIVES, *CONTRIB["objective"]} - elsewhere == set(ROWS)


class ScoresPerRow(Bound):
  """Counts rows where tokens are meant."""

  def __call__(self, model, params, key, batch, times, progress):
    loss, costs = super().__call__(model, params, key, batch, times, progress)
    return loss._replace(count=np.float32(batch.ids.shape[0])), costs


def test_a_wrong_count_would_be_noticed():
  model, params = exact_model(MASKED, LANGUAGE)
  with pytest.raises(AssertionError, match="count"):
    check_objective(ScoresPerRow(), model, params, LANGUAGE, only=("shapes",))
