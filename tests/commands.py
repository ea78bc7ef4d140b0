"""Commands in processes forked from one that has imported what they need, which is half of the time
of most of them.

python tests/commands.py    # reads lines of JSON, [name, output, *flags], and answers each with the
exit code
"""

import json
import os
import pathlib
import runpy
import select
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Forked:
  """Starts the process on first use; `environment` is that of all commands."""

  def __init__(self, environment: dict[str, str], folder: pathlib.Path):
    self.environment, self.folder, self.process, self.number = environment, folder, None, 0

  def run(self, name: str, *flags: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """As subprocess.run of `python -m experiments.<name> flags`, with captured text."""
    if self.process is None:
      options = {
        "cwd": ROOT,
        "env": self.environment,
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
      }
      self.process = subprocess.Popen([sys.executable, __file__], **options)
    self.number += 1
    path = self.folder / f"command_{self.number}"
    print(json.dumps([name, str(path), *flags]), file=self.process.stdin, flush=True)
    if not select.select([self.process.stdout], [], [], timeout)[0]:
      self.close()
      raise subprocess.TimeoutExpired([name, *flags], timeout)
    code = int(self.process.stdout.readline())
    return subprocess.CompletedProcess(
      [name, *flags], code, *(pathlib.Path(f"{path}.{kind}").read_text() for kind in ("out", "err"))
    )

  def close(self) -> None:
    """Ends the process; a later command starts another."""
    if self.process is not None:
      self.process.kill()
      self.process.communicate()
      self.process = None


def main():
  sys.path.insert(0, str(ROOT))  # of a script it is the script's own folder
  import orbax.checkpoint  # noqa: F401

  import diffusion_text.experiment.run  # noqa: F401

  for line in sys.stdin:
    name, path, *flags = json.loads(line)
    child = os.fork()
    if child == 0:  # from here on this is the command
      for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{path}.{kind}", os.O_WRONLY | os.O_CREAT), number)
      os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
      sys.argv = [name, *flags]
      runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
      return
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
  main()
