"""Rows of text files: lines, JSON lines, csv and parquet, read the same way by every corpus.

A file is UTF-8, with or without a byte-order mark. A line ends with "\\n" or "\\r\\n". A reader
yields a `Row` for each row of its file, a bad one too, with its place and with what was found;
`checked` then raises, or leaves it out.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

log = logging.getLogger(__name__)

BadRows = Literal["refuse", "skip"]

_MARK = b"\xef\xbb\xbf"  # the byte-order mark of UTF-8
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")  # those of UTF-16


class Row(NamedTuple):
  """One row of a file.

  Attributes:
    number: The line of the file on which the row begins, from 1. Of parquet and of data in memory:
      the number of the row.
    value: What the row holds.
    problem: What is wrong with the row, as in "is not JSON (…)". None for a good row.
  """

  number: int
  value: Any = None
  problem: str | None = None


def checked(where: str, rows: Iterable[Row], bad_rows: BadRows = "refuse") -> Iterator[Any]:
  """The values of the good rows.

  Args:
    where: The place of the rows without their number: "folder/file.jsonl:".
    rows: Rows of a reader.
    bad_rows: "refuse" to raise at the first bad row, "skip" to leave bad rows out; their number is
      then logged, with the first of them.

  Raises:
    ValueError: For a bad row, with its place, what was found and how to skip it.
  """
  first, skipped = None, 0
  for row in rows:
    if row.problem is None:
      yield row.value
    elif bad_rows == "refuse":
      raise ValueError(
        f"{where}{row.number} {row.problem}; mend the row, or leave such rows out with "
        "data.bad_rows='skip'"
      )
    else:
      first, skipped = first or row, skipped + 1
  if first is not None:
    place = f"{where}{first.number} {first.problem}"
    log.warning("%d bad row(s) left out; the first: %s", skipped, place)


def text_problem(value: Any, field: str) -> str | None:
  """What keeps a value from being a document, as in "has null in field='text'"; None: nothing."""
  if value is None:
    return f"has null in {field}"
  if not isinstance(value, str):
    return f"has {_short(value)} in {field}, which is {type(value).__name__} and no text"
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    code = ord(value[error.start])
    if 0xDC80 <= code <= 0xDCFF:  # how "surrogateescape" keeps a byte that is not UTF-8
      return f"is not UTF-8: byte 0x{code - 0xDC00:02x} in {field}, at character {error.start}"
    return (
      f"has the lone surrogate \\u{code:04x} in {field}, at character {error.start}, which is half "
      "a character"
    )
  return None


def lines(path: Path) -> Iterator[Row]:
  """The lines of a file as `str`, without their ends and without a byte-order mark.

  Raises:
    ValueError: For a file that cannot be opened, and for UTF-16.
  """
  with opened(path) as file:
    for number, line in enumerate(file, 1):
      raw = _unmarked(path, line) if number == 1 else line
      raw = raw.removesuffix(b"\n").removesuffix(b"\r")
      try:
        yield Row(number, raw.decode("utf-8"))
      except UnicodeDecodeError as error:
        yield Row(number, None, _not_utf8(error))


def whole_text(path: Path) -> str:
  """The text of a file, every line end as it is.

  Raises:
    ValueError: For bytes that are not UTF-8, with the line.
  """
  with opened(path) as file:
    raw = _unmarked(path, file.read())
  try:
    return raw.decode("utf-8")
  except UnicodeDecodeError as error:
    line = raw.count(b"\n", 0, error.start) + 1
    raise ValueError(f"{path}:{line} {_not_utf8(error)}; convert the file to UTF-8") from error


def json_rows(path: Path) -> Iterator[Row]:
  """The objects of a file with one JSON object per line, as dicts; blank lines are no rows."""
  for row in lines(path):
    if row.problem is not None:
      yield row
    elif row.value.strip():
      yield _json_row(row)


def csv_rows(path: Path) -> Iterator[Row]:
  """The rows of a csv file below its header, as dicts of `str`; blank lines are no rows."""
  with opened(path) as file:
    # Bytes that are not UTF-8 become lone surrogates, and `text_problem` says so of the row.
    reader = csv.reader(_escaped(path, file), strict=True)
    header = None
    begin = 1
    while True:
      try:
        cells = next(reader, None)
        problem = None
      except csv.Error as error:
        cells, problem = [], f"is not csv ({error})"
      if cells is None:
        return
      if problem is not None:
        yield Row(begin, None, problem)
      elif cells and header is None:
        header = cells
      elif cells and len(cells) != len(header):
        yield Row(begin, None, f"has {len(cells)} cells, but the header has {len(header)}")
      elif cells:
        yield Row(begin, dict(zip(header, cells, strict=True)))
      begin = reader.line_num + 1


def parquet_rows(path: Path, field: str) -> Iterator[Row]:
  """The rows of a parquet file, as dicts with the one column `field`.

  Raises:
    ValueError: For a file that is no parquet or lacks the column, and for a column that is no text.
  """
  import pyarrow.parquet  # heavy, and only this reader needs it

  try:
    file = pyarrow.parquet.ParquetFile(path)
  except (pyarrow.ArrowInvalid, OSError) as error:
    raise ValueError(f"{path} cannot be read as parquet ({error}); write it again") from error
  if field not in file.schema_arrow.names:
    raise ValueError(
      f"{path} has no column field={field!r}, it holds {file.schema_arrow.names}; "
      "set field= to the one with the text"
    )
  kind = file.schema_arrow.field(field).type
  if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
    raise ValueError(
      f"{path}: column field={field!r} holds {kind}, not text; set field= to a column of strings"
    )
  number = 0
  for batch in file.iter_batches(columns=[field]):
    for value in _cells(batch.column(0)):
      number += 1
      bad = isinstance(value, UnicodeDecodeError)
      yield Row(number, None, _not_utf8(value)) if bad else Row(number, {field: value})


def with_fields(rows: Iterable[Row], fields: tuple[str, ...], fix: str) -> Iterator[Row]:
  """The same rows, their values the texts of `fields` as a tuple.

  Args:
    rows: Rows with dicts.
    fields: Names of the fields with text.
    fix: Which option names the fields, for messages.
  """
  for row in rows:
    if row.problem is not None:
      yield row
      continue
    missing = [field for field in fields if field not in row.value]
    if missing:
      held = sorted(map(str, row.value))
      names = " and ".join(f"field={field!r}" for field in missing)
      yield Row(row.number, None, f"has no text in {names}, it holds {held}; {fix}")
      continue
    problems = [text_problem(row.value[field], f"field={field!r}") for field in fields]
    problem = next((one for one in problems if one is not None), None)
    yield Row(row.number, tuple(row.value[field] for field in fields), problem)


def opened(path: Path) -> BinaryIO:
  """The file, open for reading bytes. Raises ValueError for a file that cannot be opened."""
  try:
    return path.open("rb")
  except OSError as error:
    raise ValueError(f"{path} cannot be opened ({error.strerror}); mend or remove it") from error


def _unmarked(path: Path, raw: bytes) -> bytes:
  """The first bytes of a file without a byte-order mark."""
  if raw.startswith(_WIDE_MARKS):
    raise ValueError(
      f"{path} begins with the byte-order mark of UTF-16; convert it with "
      f"iconv -f utf-16 -t utf-8 {path.name}"
    )
  return raw.removeprefix(_MARK)


def _escaped(path: Path, file: BinaryIO) -> Iterator[str]:
  """The lines with their ends, and with lone surrogates for bytes that are not UTF-8."""
  for number, line in enumerate(file):
    raw = line if number else _unmarked(path, line)
    yield raw.decode("utf-8", errors="surrogateescape")


def _cells(column: Any) -> list[Any]:
  """The values of an arrow array; in place of a text that is not UTF-8, the error."""
  try:
    return column.to_pylist()  # much faster than one by one
  except UnicodeDecodeError:
    return [_cell(cell) for cell in column]


def _cell(cell: Any) -> Any:
  try:
    return cell.as_py()
  except UnicodeDecodeError as error:
    return error


def _json_row(row: Row) -> Row:
  try:
    value = json.loads(row.value)
  except (ValueError, RecursionError) as error:
    return Row(row.number, None, f"is not JSON ({error}), it begins with {_short(row.value)}")
  if not isinstance(value, dict):
    return Row(row.number, None, f"holds {_short(value)} and no JSON object")
  return Row(row.number, value)


def _not_utf8(error: UnicodeDecodeError) -> str:
  byte = error.object[error.start]
  return f"is not UTF-8: byte 0x{byte:02x} at byte {error.start} of the text"


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:37]}…"
