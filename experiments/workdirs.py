"""The flag --workdirs of commands that read several trained runs."""

import os
from collections.abc import Callable

from absl import flags

flags.disclaim_key_flags()  # --help shows it with those of the main that asks for it


def workdirs_flag(meaning: str, required: bool = True) -> Callable[[], dict[str, str]]:
  """A function that returns the runs that were typed: name -> workdir. The names are the last parts
  of the paths, or the whole paths where two runs would be called the same.

  The function raises ValueError for no run, if one is required, and for one that is given twice.
  """
  flag = flags.DEFINE_list("workdirs", [], meaning)

  def asked() -> dict[str, str]:
    from diffusion_text.studies.measures import names

    workdirs = [os.path.expanduser(workdir).rstrip("/") for workdir in flag.value]
    if required and not workdirs:
      raise ValueError("--workdirs is empty; name one run or more, as in --workdirs=runs/a,runs/b")
    if len(set(workdirs)) < len(workdirs):
      raise ValueError(f"--workdirs={','.join(flag.value)} names a run twice; name each once")
    return dict(zip(names(workdirs), workdirs))

  return asked
