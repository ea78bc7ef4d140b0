"""Paths of directories, local or on a network."""

from __future__ import annotations

from typing import Any


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
