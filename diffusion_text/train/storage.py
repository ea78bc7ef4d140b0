"""Paths of directories, local or on a network."""

from __future__ import annotations

import tempfile
from typing import Any

import jax


def as_path(location: Any) -> Any:
  """A `pathlib`-like path, absolute and local for "dir", "~/dir" and "file:///dir".

  Other URLs give a path of `etils.epath`, which reads gs://, s3:// and az:// if the fsspec package
  of that store (gcsfs, s3fs, adlfs) is installed.
  """
  from etils import epath  # here, because only directories on a network need more than pathlib

  text = str(location).removeprefix("file://")
  path = epath.Path(text)
  # `absolute` would make gs:// a local path.
  return path if "://" in text else path.expanduser().absolute()


def is_remote(location: Any) -> bool:
  """True for a URL other than file://, where files cannot be appended to."""
  return "://" in str(location).removeprefix("file://")


def check_compilation_cache() -> None:
  """Makes the directory of JAX's compilation cache, if one is set, with ~ expanded.

  JAX itself warns at every program and compiles each again.

  Raises:
    ValueError: for a directory that cannot be made or written, and for a disk that is full.
  """
  chosen = jax.config.jax_compilation_cache_dir
  if not chosen or is_remote(chosen):
    return
  path = as_path(chosen)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path) as file:
      file.write(bytes(4096))
      file.flush()
  except OSError as error:
    raise ValueError(
      f"JAX's compilation cache {chosen!r} cannot be written: {error}; make room there, set"
      " JAX_COMPILATION_CACHE_DIR to another directory, or unset it"
    ) from error
  jax.config.update("jax_compilation_cache_dir", str(path))
