"""Directories by name: local ones, and those on a network by URL."""

from __future__ import annotations

from typing import Any


def as_path(location: Any) -> Any:
  """A `pathlib`-like path: local, absolute, for "dir", "~/dir" and "file:///dir"; else what `etils.epath` has for the URL.

  epath reads gs://, s3:// and az:// where the fsspec package of that store (gcsfs, s3fs, adlfs) is installed.
  """
  from etils import epath  # here, because only directories on a network need more than pathlib

  text = str(location).removeprefix("file://")
  path = epath.Path(text)
  return (
    path if "://" in text else path.expanduser().absolute()
  )  # `absolute` would make gs:// a local path


def is_remote(location: Any) -> bool:
  """Whether files there cannot be appended to: a URL other than file://."""
  return "://" in str(location).removeprefix("file://")
