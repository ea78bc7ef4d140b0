"""A bucket of Google Cloud Storage in the memory of this process: what tensorstore asks over HTTP,
and the file system of fsspec that etils asks.

There are objects with names, and no directories: a "directory" is there while the name of an object
begins with it. Every write gives the object a new generation, and what asks for another generation
is refused, as in the JSON API (cloud.google.com/storage/docs/json_api).
"""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import json
import re
import sys
import threading
import types
import urllib.parse

import fsspec


class Bucket:
  """name -> (bytes, generation); `refused` counts requests that no handler knows."""

  def __init__(self):
    self.lock, self.objects, self.refused = threading.RLock(), {}, []
    self._generations = itertools.count(1)

  def write(self, name: str, content: bytes, expected: int | None = None) -> int | None:
    """The new generation; None if the object has another generation than the expected one (0: it
    must not be there)."""
    with self.lock:
      if expected is not None and self.objects.get(name, (b"", 0))[1] != expected:
        return None
      self.objects[name] = content, next(self._generations)
      return self.objects[name][1]

  def beginning(self, prefix: str) -> list[str]:
    """The names that begin so, sorted."""
    with self.lock:
      return sorted(name for name in self.objects if name.startswith(prefix))


BUCKET = Bucket()


class Handler(http.server.BaseHTTPRequestHandler):
  """The part of the JSON API that reads, writes, deletes and lists objects of any bucket."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    """Says nothing."""

  def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
    self.send_response(code)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(body)

  def _asked(self) -> tuple[str | None, dict[str, str]]:
    """(bucket/name of the object, None for a whole bucket; the query)."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    found = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
    if found is None:
      BUCKET.refused.append(self.path)
      return None, {}
    name = query.get("name") or urllib.parse.unquote(found[2] or "")
    self.bucket = found[1]
    return f"{found[1]}/{name}" if name else None, query

  def do_GET(self):
    """An object, or a part of it, or the names in a bucket."""
    name, query = self._asked()
    if name is None:
      begin = f"{self.bucket}/"
      names = [each[len(begin) :] for each in BUCKET.beginning(begin + query.get("prefix", ""))]
      first, last = query.get("startOffset", ""), query.get("endOffset")
      items = [{"name": each} for each in names if each >= first and (not last or each < last)]
      return self._answer(200, json.dumps({"items": items}).encode())
    with BUCKET.lock:
      content, generation = BUCKET.objects.get(name, (None, 0))
    if content is None:
      return self._answer(404)
    if query.get("ifGenerationNotMatch") == str(generation):
      return self._answer(304)
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return self._answer(412)
    headers, code, size = {"x_goog_generation": str(generation)}, 200, len(content)
    if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
      begin, end = int(part[1]), min(int(part[2] or size), size - 1) + 1
      if begin >= size:
        return self._answer(416)
      content, code = content[begin:end], 206
      headers["Content_Range"] = f"bytes {begin}-{end - 1}/{size}"
    self._answer(code, content, **headers)

  def do_POST(self):
    """Writes an object whole."""
    name, query = self._asked()
    content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    if name is None or query.get("uploadType") != "media":
      BUCKET.refused.append(self.path)
      return self._answer(501)
    expected = query.get("ifGenerationMatch")
    generation = BUCKET.write(name, content, None if expected is None else int(expected))
    if generation is None:
      return self._answer(412)
    body = {"name": name, "generation": str(generation), "size": str(len(content))}
    self._answer(200, json.dumps(body).encode())

  def do_DELETE(self):
    """Deletes an object."""
    name, _ = self._asked()
    with BUCKET.lock:
      found = BUCKET.objects.pop(name, None)
    self._answer(404 if found is None else 204)


class Writing(io.BytesIO):
  """A new object, which is there once it is closed."""

  def __init__(self, name: str, expected: int | None):
    super().__init__()
    self._name, self._expected = name, expected

  def close(self):
    """Raises FileExistsError for an object that was to be new."""
    if not self.closed and BUCKET.write(self._name, self.getvalue(), self._expected) is None:
      raise FileExistsError(self._name)
    super().close()


class ObjectStore(fsspec.AbstractFileSystem):
  """gs:// of fsspec."""

  protocol = ("gcs", "gs")
  cachable = False

  def info(self, path: str, **_):
    """Name, size and type."""
    path = self._strip_protocol(path)
    if path in BUCKET.objects:
      return {"name": path, "size": len(BUCKET.objects[path][0]), "type": "file"}
    if BUCKET.beginning(f"{path}/") or "/" not in path:  # a bucket is always there
      return {"name": path, "size": 0, "type": "directory"}
    raise FileNotFoundError(path)

  def ls(self, path: str, detail: bool = True, **_):
    """What stands directly below."""
    path = self._strip_protocol(path)
    if self.info(path)["type"] == "file":
      names = [path]
    else:
      below = (name[len(path) + 1 :] for name in BUCKET.beginning(f"{path}/"))
      names = list(dict.fromkeys(f"{path}/{name.partition('/')[0]}" for name in below))
    return [self.info(name) for name in names] if detail else names

  def mkdir(self, path: str, create_parents: bool = True, **_):
    """Nothing: there are no directories."""

  def makedirs(self, path: str, exist_ok: bool = False):
    """Nothing."""

  def rm_file(self, path: str):
    """Deletes an object; nothing for a directory."""
    BUCKET.objects.pop(self._strip_protocol(path), None)

  def cp_file(self, path1: str, path2: str, **_):
    """Copies an object; nothing for a directory."""
    source = BUCKET.objects.get(self._strip_protocol(path1))
    if source is not None:
      BUCKET.write(self._strip_protocol(path2), source[0])

  def _open(self, path: str, mode: str = "rb", **_):
    path = self._strip_protocol(path)
    if "r" not in mode:
      return Writing(path, 0 if "x" in mode else None)
    if path not in BUCKET.objects:
      raise FileNotFoundError(path)
    return io.BytesIO(BUCKET.objects[path][0])


@contextlib.contextmanager
def served(monkeypatch):
  """The empty bucket, for as long as it is served."""
  server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
  monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "nobody")
  fsspec.register_implementation("gcs", ObjectStore, clobber=True)
  # What orbax asks when it deletes: whether the bucket has folders (google-cloud-storage).
  client = types.SimpleNamespace(get_bucket=lambda name: name)
  cloud = types.SimpleNamespace(storage=types.SimpleNamespace(Client=lambda: client))
  monkeypatch.setitem(sys.modules, "google.cloud", cloud)
  BUCKET.objects.clear()
  try:
    yield BUCKET
  finally:
    server.shutdown()
    server.server_close()
