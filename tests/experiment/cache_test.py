"""The cache of token arrays: one that cannot be written is refused with the fix."""

import errno

import pytest

from diffusion_text.data.tokenizers import Bytes
from diffusion_text.experiment import settings
from diffusion_text.experiment.settings import DataSettings

DATA = {"tokenizer": "bytes", "length": 16}


def test_a_cache_below_a_file_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  data = DataSettings(**DATA, cache_dir=str(tmp_path / "file" / "cache"))
  match = r"data\.cache_dir='.*file/cache' cannot be written: .*set --config\.data\.cache_dir"
  with pytest.raises(ValueError, match=match):
    data.tokens(Bytes(), "train")
  with pytest.raises(ValueError, match=match):
    data.token_counts(Bytes())


def test_a_full_disk_is_the_caches_and_a_missing_corpus_is_not(tmp_path, monkeypatch):
  data = DataSettings(**DATA, cache_dir=str(tmp_path / "cache"))
  for error, wanted in (
    (OSError(errno.ENOSPC, "No space left on device"), ValueError),
    (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/corpus.txt"), FileNotFoundError),
    (PermissionError(errno.EACCES, "Denied", str(tmp_path / "cache" / "train-1")), ValueError),
  ):

    def fails(*_, error=error):
      raise error

    monkeypatch.setattr(settings, "token_arrays", fails)
    with pytest.raises(wanted) as caught:
      data.tokens(Bytes(), "train")
    assert type(caught.value) is wanted
