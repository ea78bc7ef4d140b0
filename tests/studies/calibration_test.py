"""The standard error of the bound covers the truth of a known language as often as it says."""

import pytest

from diffusion_text.studies.calibration import Known, calibration
from diffusion_text.testing.exact_model import exact_model, small_language


@pytest.mark.parametrize("process,power", [("masked", 1.0), ("uniform", 3.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(process, power):
  """95 % intervals, 200 repetitions of 64 rows. Uniform noise needs times with more of the small
  ones: with even times its rates have no finite variance, and 80 % of intervals hold the truth
  (experiments.calibration). Mutant: half of the error.
  """
  language = small_language(3)
  known = Known(language, lambda member, timing: exact_model(member, language, timing=timing))
  found = calibration(known, process, {}, power=power, rows=64)
  assert 0.88 <= found.coverage() <= 0.99 and found.coverage(0.5) < 0.85
  assert abs((found.estimates - found.truth).mean()) < 4 * found.estimates.std() / 200**0.5
  assert len(found.cells()) == 5 and "±" in found.cells()[0]
