"""Notebooks run from the first cell to the last at small sizes, and are kept without outputs."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, environment
from tests.studies.instruction_models import folder_of_weights

nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat (extra: test)")
nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient (extra: test)")

FOLDER = ROOT / "experiments" / "colab"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
SMALL = {
  "train_and_watch.ipynb": """
STEPS, ROWS, LENGTH, LAYERS, WIDTH, HEADS, CALLS = 3, 4, 16, 1, 16, 1, 4
SCORED = "validation"
""",
  "every_process.ipynb": "ROWS, DRAWS, TEXTS, STEPS, UPDATES = 512, 4, 512, (2,), 3",
  "pretrained.ipynb": "STEPS, ROWS, LENGTH, SCORED = 2, 4, 16, 8",
}


def test_every_notebook_is_run():
  assert set(NOTEBOOKS) == set(SMALL)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs_and_begins_with_its_installation(name):
  cells = json.loads((FOLDER / name).read_text())["cells"]
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
  assert "".join(code[0]["source"]).rstrip().endswith("install()")
  assert code[1]["metadata"]["tags"] == ["parameters"]
  longest = max(len(line.rstrip("\n")) for cell in code for line in cell["source"])
  assert longest <= 100


@pytest.mark.parametrize(
  "name, driver, extras",
  [
    ("train_and_watch.ipynb", None, ""),
    ("every_process.ipynb", "CUDA Version: 12.4", "[cuda12]"),
    ("pretrained.ipynb", "CUDA Version: 13.0", "[pretrained,cuda]"),
  ],
)
def test_the_first_cell_installs_what_a_runtime_needs(name, driver, extras, tmp_path, monkeypatch):
  """On a machine without the package; pip, git and nvidia-smi are replaced."""
  cells = json.loads((FOLDER / name).read_text())["cells"]
  source = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
  done = []

  def program(command, **_):
    done.append(command)
    return subprocess.CompletedProcess(command, 0, stdout=driver)

  def missing(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(importlib.metadata, "version", missing)
  monkeypatch.setattr(subprocess, "run", program)
  monkeypatch.setattr(shutil, "which", lambda _: driver)
  monkeypatch.delitem(sys.modules, "jax")
  with pytest.raises(ValueError, match="set REPOSITORY above to the address"):
    exec(source, {})
  assert not done
  exec(source.replace('REPOSITORY = ""', 'REPOSITORY = "there"'), {})
  clone = tmp_path / "diffusion_text_clone"
  assert done[0] == ["git", "clone", "--depth=1", "there", str(clone)]
  assert done[-1][-1] == f"{clone}{extras}"
  (tmp_path / "diffusion_text" / "diffusion_text").mkdir(parents=True)
  (tmp_path / "diffusion_text" / "diffusion_text" / "__init__.py").touch()
  exec(source, {})  # cloned by hand, and opened beside the clone
  assert done[-1][-1] == f"{tmp_path / 'diffusion_text'}{extras}"


def run(name, more, tmp_path, monkeypatch):
  """What the cells of a notebook print, with other sizes behind its own."""
  book = nbformat.read(FOLDER / name, as_version=4)
  (sizes,) = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", ())]
  sizes.source += f"\n{SMALL[name]}\n{more}"
  for key, value in environment(tmp_path).items():
    monkeypatch.setenv(key, value)
  monkeypatch.setenv("MPLBACKEND", "agg")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  client = nbclient.NotebookClient(
    book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
  printed = "".join(output.text for output in outputs if output.output_type == "stream")
  shown = [output.data for output in outputs if output.output_type == "execute_result"]
  return printed, [each["text/html"] for each in shown if "text/html" in each]


def test_a_model_is_trained_scored_and_watched(tmp_path, monkeypatch):
  printed, pages = run("train_and_watch.ipynb", "", tmp_path, monkeypatch)
  assert re.search(r"bound \d\.\d+ ± ", printed)
  assert "plain: 4.0 calls" in printed
  assert len(pages) == 2 and all(page.startswith("<iframe srcdoc=") for page in pages)


def test_every_process_is_held_to_the_language(tmp_path, monkeypatch):
  printed, _ = run("every_process.ipynb", "", tmp_path, monkeypatch)
  found = re.findall(r"^(.+?) +bound less entropy: ([+-][\d.]+) ± ([\d.]+) nats", printed, re.M)
  assert [name for name, *_ in found] == [
    *("masked", "uniform", "masked and uniform", "embedding", "simplex")
  ]
  excess, error = np.array([row[1:] for row in found], float).T
  assert (np.abs(excess) < np.maximum(6 * error, 0.1)).all(), found


def test_pretrained_weights_are_adapted_and_decoded(tmp_path, monkeypatch):
  folder, *_ = folder_of_weights(tmp_path, "llama")
  more = f'WEIGHTS = "{folder}"'
  printed, pages = run("pretrained.ipynb", more, tmp_path, monkeypatch)
  assert re.search(r"before: bound .*\n(.*\n)*after:  bound ", printed)
  assert len(pages) == 1
