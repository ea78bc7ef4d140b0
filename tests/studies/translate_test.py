"""Sequence to sequence with the ordinary trainer, likelihood and sampler: the source comes out as it went in, padding is no text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import diffuseq, mdlm
from diffusion_text.core.prng import row_keys, token_keys
from diffusion_text.experiment import run
from diffusion_text.experiment.build import build
from diffusion_text.process.embedding import Embedding
from diffusion_text.sampler.ancestral import Ancestral
from diffusion_text.sampler.loop import sample
from diffusion_text.schedules.gaussian import PATHS
from diffusion_text.studies import translate
from diffusion_text.timing import Shared
from diffusion_text.types import Batch, Prediction, Progress

# For tiny runs, of which nearly all the time is compilation.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PAIRS = [f"{a}{b}\t{b}{a}!" for a in "abcdefgh" for b in "xyz"] + [
  "ax\txx",
  "a very long source\tz",
]


def experiment(module, tmp_path):
  for name in ("train", "dev", "test"):
    (tmp_path / f"{name}.tsv").write_text("".join(f"{pair}\n" for pair in PAIRS))
  config = module.get_config("micro")
  config.data.update(
    {
      "corpus": "pairs",
      "packing": "pairs",
      "path": str(tmp_path),
      "tokenizer": "bytes",
      "length": 12,
    }
  )
  config.data.cache_dir = str(tmp_path / "cache")
  config.model.update(
    {"layers": 1, "width": 16, "heads": 1, "kv_heads": 1, "mlp_width": 16, "time_width": 4}
  )
  config.train.update(
    {"batch_size": 8, "steps": 2, "log_every": 1, "evaluate_every": 2, "save_every": 2}
  )
  config.evaluate.batch_size, config.sampler.steps = 8, 3
  return build(config, devices=jax.devices()[:1])


@pytest.mark.parametrize("module", [mdlm, diffuseq])
def test_training_scoring_and_writing(module, tmp_path):
  pytest.importorskip("sacrebleu", reason="sacrebleu is in the extras 'metrics' and 'test'")
  toy = experiment(module, tmp_path)
  corpus, iterator = run.training_data(toy)
  params = jax.jit(toy.init_params)(jax.random.key(0))
  loss_fn = toy.loss_fn(run.tokens_per_character(toy, corpus))
  loss = jax.eval_shape(
    loss_fn, params, jax.random.key(0), next(iterator), Progress()
  )  # a batch with `given` is an ordinary one
  assert loss.total.shape == () and "bits_per_character" in loss.sums
  # Rows of 12 hold 6 or 7 open tokens, 2 or 3 of them text with its end: 25 pairs fit.
  assert run.tokens_per_character(toy, corpus) == pytest.approx((24 * 9 + 9) / (24 * 4 + 3))
  chosen = {"split": "test", "samples": [1, 2], "scorer": "chrf", "seed": 0}
  trained = run.Trained(toy, params, 0)
  row = translate.measure("toy", trained, num=5, num_draws=1, **chosen)
  assert row["altered"] == 0 and row["calls"] == 3 and row["sources"] == 5 and row["left_out"] == 1
  # All pairs but the long one: targets of three characters, one of two, and their ends; padding is nats and no token.
  assert row["tokens"] == 24 * 4 + 3
  assert set(row["scores"]) == {1, 2} and row["nats_per_token"] > 0
  assert "| toy |" in translate.table([row]) and "sentence chrF" in translate.caption(
    [row], **chosen
  )


def test_text_is_no_pairs(tmp_path):
  plain = build(mdlm.get_config("micro"), tokenizer=type("Any", (), {"vocab_size": 9}))
  with pytest.raises(ValueError, match=r"data.corpus='austen' has no sources"):
    translate.held_out_task(plain, "test")


@pytest.mark.parametrize("rho", [None, 1.0])
def test_the_source_is_read_bit_for_bit_at_every_step(rho):
  """Trap 11: the network sees the clean vectors of the source at every call, whatever the noise, and the ids come out unaltered."""
  process = Embedding(
    5, PATHS["sqrt"](log_snr_max=4.0, log_snr_min=-10.0), rho=rho, width=3, norm="none"
  )
  params = process.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  ids, given = (
    rng.integers(0, 5, (4, 6)).astype(np.int32),
    np.broadcast_to(np.arange(6) < 3, (4, 6)),
  )
  clean = np.asarray(
    process.inputs(params, process.encode(params, jnp.asarray(ids)), jnp.zeros(ids.shape)).vectors
  )

  def kept(batch):
    seen = []

    def denoise(inputs, t):
      jax.debug.callback(lambda vectors: seen.append(np.asarray(vectors)), inputs.vectors)
      return Prediction(
        jnp.sin(inputs.vectors), lambda x: jnp.concatenate([x, -x[..., :2]], axis=-1)
      )

    policy = Ancestral(timing=Shared(), steps=4)
    write = quick(lambda keys: sample(policy, process, params, denoise, token_keys(keys, 6), batch))
    results = [write(row_keys(seed, 4)) for seed in (0, 1)]
    jax.effects_barrier()
    assert len(seen) == 8
    alike = all(np.array_equal(vectors[given], clean[given]) for vectors in seen)
    return alike and all(np.array_equal(result.ids[given], ids[given]) for result in results)

  assert kept(Batch(jnp.asarray(ids), given=jnp.asarray(given)))
  assert rho is None or not kept(Batch(jnp.asarray(ids)))  # the check can fail
