"""Readers of files of pairs, for `corpora.Pairs`: two fields of a row are source and target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffusion_text.data import text_files
from diffusion_text.data.text_files import BadRows, Row

SUFFIXES = (".tsv", ".txt", ".csv", ".jsonl")
_FIX = "set data.source and data.target to the two that have it"


def read(
  path: Path, source: str | None, target: str | None, bad_rows: BadRows = "refuse"
) -> Iterator[tuple[str, str]]:
  """(source, target) of every row, as of `rows`.

  Args:
    path, source, target: As of `rows`.
    bad_rows: What to do with a row that cannot be read, see `text_files.checked`.

  Raises:
    ValueError: For an unknown kind of file, and for a row without source or target, with its place.
  """
  return text_files.checked(f"{path}:", rows(path, source, target), bad_rows)


def rows(path: Path, source: str | None, target: str | None) -> Iterator[Row]:
  """The rows of a file, their values (source, target). Line breaks within either are read as
  spaces.

  Args:
    path: A file with one of SUFFIXES.
    source: In files with tabs, which have no header, the column's number, from 0 (None: 0). In
      other files the field's name (None: "source").
    target: The same for the target (None: 1, or "target").

  Raises:
    ValueError: For an unknown kind of file, and a column that is no number.
  """
  suffix = path.suffix.lower()
  if suffix not in SUFFIXES:
    raise ValueError(f"{path} is no file of pairs; use {', '.join(SUFFIXES)}")
  if suffix in (".tsv", ".txt"):
    found = _tabbed(path, _column("source", source, 0), _column("target", target, 1))
  else:
    named = text_files.csv_rows(path) if suffix == ".csv" else text_files.json_rows(path)
    found = text_files.with_fields(named, (source or "source", target or "target"), _FIX)
  for row in found:
    yield row if row.problem else row._replace(value=tuple(map(_one_line, row.value)))


def _one_line(text: str) -> str:
  return text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")


def _column(name: str, value: str | None, default: int) -> int:
  if value is None:
    return default
  if not value.isdecimal():
    raise ValueError(
      f"data.{name}={value!r} is a name, but columns between tabs have numbers; "
      "use '0' for the first"
    )
  return int(value)


def _tabbed(path: Path, source: int, target: int) -> Iterator[Row]:
  for row in text_files.lines(path):
    if row.problem is not None:
      yield row
      continue
    columns = row.value.split("\t")
    if columns == [""]:
      continue
    if len(columns) > max(source, target):
      yield Row(row.number, (columns[source], columns[target]))
    else:
      yield Row(
        row.number,
        None,
        f"has {len(columns)} columns between tabs, but data.source={source} and "
        f"data.target={target} are asked for; columns are counted from 0",
      )
