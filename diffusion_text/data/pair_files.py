"""Readers of files of pairs, for `corpora.Pairs`: two fields of a row are source and target."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".tsv", ".txt", ".csv", ".jsonl")


def read(path: Path, source: str | None, target: str | None) -> Iterator[tuple[str, str]]:
  """(source, target) of every row. Line breaks within either are read as spaces.

  Args:
    path: A file with one of SUFFIXES.
    source: In files with tabs, which have no header, the column's number, from 0 (None: 0). In
      other files the field's name (None: "source").
    target: The same for the target (None: 1, or "target").

  Raises:
    ValueError: For an unknown kind of file, and for a row without source or target, with its place.
  """
  if path.suffix not in SUFFIXES:
    raise ValueError(f"{path} is no file of pairs; use {', '.join(SUFFIXES)}")
  if path.suffix in (".tsv", ".txt"):
    rows = _tabbed(path, _column("source", source, 0), _column("target", target, 1))
  else:
    rows = _named(path, source or "source", target or "target")
  for first, second in rows:
    yield _one_line(first), _one_line(second)


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


def _tabbed(path: Path, source: int, target: int) -> Iterator[tuple[str, str]]:
  with path.open(encoding="utf-8", newline="\n") as file:
    for number, line in enumerate(file, 1):
      columns = line.rstrip("\r\n").split("\t")
      if columns == [""]:
        continue
      if len(columns) <= max(source, target):
        raise ValueError(
          f"{path}:{number} has {len(columns)} columns between tabs, but data.source={source} and "
          f"data.target={target} are asked for; columns are counted from 0"
        )
      yield columns[source], columns[target]


def _named(path: Path, source: str, target: str) -> Iterator[tuple[str, str]]:
  with path.open(encoding="utf-8", newline="") as file:
    rows = (
      csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file))
    )
    number = 0
    try:
      for number, row in enumerate(rows, 1):
        held = row if isinstance(row, dict) else {}
        if not isinstance(held.get(source), str) or not isinstance(held.get(target), str):
          raise ValueError(
            f"row {number} has no text in {source!r} and {target!r}, it holds "
            f"{[str(key) for key in held]}; set data.source and data.target to the two that have it"
          )
        yield held[source], held[target]
    except (ValueError, csv.Error) as error:  # json's error is a ValueError too
      message = (
        str(error)
        if str(error).startswith("row ")
        else f"row {number + 1} cannot be read ({error})"
      )
      raise ValueError(f"{path}: {message}") from error
