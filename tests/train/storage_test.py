"""Places on a disk: JAX's compilation cache is made, or refused with the fix."""

import errno
import pathlib
import tempfile

import jax
import pytest

from diffusion_text.train import storage


@pytest.fixture
def cache():
  """Sets the directory of JAX's cache, and puts the old one back."""
  before = jax.config.jax_compilation_cache_dir
  yield lambda path: jax.config.update("jax_compilation_cache_dir", path)
  jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_is_made_in_the_home_that_it_names(cache, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  cache("~/caches/jax")
  storage.check_compilation_cache()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "caches" / "jax")
  assert not list((tmp_path / "caches" / "jax").iterdir())
  cache(None)
  storage.check_compilation_cache()


def test_a_cache_that_cannot_be_written_is_refused(cache, tmp_path):
  (tmp_path / "file").write_text("")
  cache(str(tmp_path / "file" / "jax"))
  with pytest.raises(ValueError, match=r"compilation cache .*file/jax.* cannot be written.*unset"):
    storage.check_compilation_cache()


def test_a_full_disk_is_refused(cache, tmp_path, monkeypatch):
  def full(**_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
  cache(str(pathlib.Path(tmp_path) / "jax"))
  with pytest.raises(ValueError, match="No space left on device; make room there"):
    storage.check_compilation_cache()
