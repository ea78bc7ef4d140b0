"""Tasks from files: rows as published, bad ones refused with file, line and fix."""

import os
from pathlib import Path

import pytest

from diffusion_text.data.tasks import TASKS, Example
from diffusion_text.data.tasks.contract import token_f1

DATA = Path(os.environ.get("DIFFUSION_TEXT_DATA", "/nowhere"))
GOOD = {
  "countdown3": ("train.txt", "92,22,39,75|92+22=114,114-39=75"),
  "sudoku4": ("train.csv", "puzzle,solution\n3400023000004003,3412123423414123"),
  "multiplication": ("train.txt", "2 1 * 9 3||8 0 1 + 0 6 3 0 #### 8 6 4 0"),
  "scan": ("train.txt", "IN: jump left twice OUT: I_TURN_LEFT I_JUMP I_TURN_LEFT I_JUMP"),
  "word_problems": ("train.jsonl", '{"question": "6·2?", "answer": "6·2=<<6*2=12>>12\\n#### 12"}'),
  "translation": ("train.tsv", "Go.\tVa !\nGo.\tMarche.\nHi.\tSalut !"),
  "data_to_text": ("train.csv", 'mr,ref\n"name[The Vaults], food[Thai]",The Vaults is Thai.'),
  "split_and_rephrase": ("train.tsv", "A, and B.\tA. <::::> B."),
  "summarisation": ("train.tsv", f"{'long ' * 300}\tshort"),
}  # fmt: skip
# What is added to the file above, and what the message says.
BAD = {
  "countdown3": [
    ("92,22,39,75|92+22=114,114-39=76", r":2 is no solved puzzle: .* does not hold"),
    ("92,22,75|92-22=70", r":2 has 2 numbers, and data.task.numbers=3"),
    ("92 22 39 75", r":2 holds '92 22 39 75', and must be numbers,target\|equations"),
  ],
  "sudoku4": [
    ("3400023000004003,3412123423414113", r":3 is no solved puzzle: .* twice in"),
    ("34000230,3412123423414123", r":3 has the puzzle '34000230', and must have 16 digits"),
    ("3400023000004003", r":3 has 1 cells, but the header has 2"),
  ],
  "multiplication": [
    ("2 1 * 9 3||8 0 1 + 0 6 3 0 #### 8 6 5 0", r":2 is no solved puzzle: .* is not the product"),
    ("2 1 + 9 3||1", r":2 holds '2 1 \+ 9 3\|\|1', and must be"),
  ],
  "scan": [
    ("IN: jump twice OUT: I_JUMP", r":2 is no solved puzzle"),
    ("jump", r":2 holds 'jump', and must be IN: … OUT: …"),
  ],
  "word_problems": [
    ('{"question": "1", "answer": "one"}', r":2 has the answer 'one', which must end in ####"),
    ('{"question": "1"}', r":2 has no text in field='answer'.*each line must have question"),
  ],
  "translation": [("Wait!", r":4 has 1 columns between tabs, but .*; mend or remove the row")],
  "data_to_text": [("a,b,c", r":3 has 3 cells, but the header has 2")],
}


def write(folder, name, text):
  (folder / name).write_text(text + "\n", encoding="utf-8")
  return str(folder)


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_are_read(name, tmp_path):
  file, text = GOOD[name]
  task = TASKS[name](path=write(tmp_path, file, text))
  examples = task.examples("all")
  assert all(task.verify(one, answer).right for one in examples for answer in one.answers)
  assert examples[0].place == f"{tmp_path / file}:{2 if file.endswith('csv') else 1}"
  assert file in task.origin("train")
  identity = task.identity()
  assert str(tmp_path) not in identity
  with pytest.raises(ValueError, match="has no example for split='validation'"):
    task.examples("validation")
  changed = text.replace("A, and", "C, and").replace("long", "longer").replace("0", "1", 1)
  if changed != text:
    write(tmp_path, file, changed)
    assert task.identity() != identity


@pytest.mark.parametrize("name,row,message", [(n, *bad) for n, rows in BAD.items() for bad in rows])
def test_bad_rows_name_file_line_and_fix(name, row, message, tmp_path):
  file, text = GOOD[name]
  task = TASKS[name](path=write(tmp_path, file, f"{text}\n{row}"))
  with pytest.raises(ValueError, match=f"^{tmp_path / file}{message}"):
    task.examples("train")


def test_targets_of_a_source_are_answers_of_one_example(tmp_path):
  task = TASKS["translation"](path=write(tmp_path, *GOOD["translation"]), max_characters=7)
  first, second = task.examples("train")
  assert first.answers == ("Va !", "Marche.") and second.answers == ("Salut !",)
  short = TASKS["translation"](path=str(tmp_path), max_characters=6)
  assert short.examples("train")[0].answers == ("Va !",)
  assert task.verify(first, "Marche.").right and task.verify(first, "Va là").reward == 0.9 * 0.5


def test_concepts_are_files_in_twos(tmp_path):
  write(tmp_path, "train_src.txt", "dog run\ndog run\ncat")
  write(tmp_path, "train_trg.txt", "A dog runs.\nDogs ran.\nThe cat.")
  task = TASKS["concepts"](path=str(tmp_path))
  first, _ = task.examples("train")
  assert first[:2] == ("dog run", ("A dog runs.", "Dogs ran."))
  assert task.verify(first, "My dog is running.").reward == 0.9
  assert task.verify(first, "My dog.").reward == 0.45
  write(tmp_path, "train_trg.txt", "A dog runs.\nDogs ran.")
  with pytest.raises(ValueError, match=r"train_trg.txt:3 is missing: train_src.txt has 3 lines"):
    task.examples("train")


def test_fidelity_counts_the_values_of_a_record(tmp_path):
  task = TASKS["data_to_text"](path=write(tmp_path, *GOOD["data_to_text"]))
  one = Example("name[The Vaults], food[Thai], familyFriendly[yes]", ("The Vaults is Thai.",))
  assert task.verify(one, "the vaults has thai food").reward == 0.9
  assert task.verify(one, "the vaults").reward == 0.45
  assert "does not say Thai" in task.verify(one, "the vaults").reason


def test_words_of_a_problem(tmp_path):
  path = write(tmp_path, *GOOD["word_problems"])
  answers = {kind: TASKS["word_problems"](path=path, thoughts=kind).examples("train")[0].answers[0]
             for kind in ("text", "equations", "none")}  # fmt: skip
  assert answers == {
    "text": "6·2=<<6*2=12>>12 #### 12",
    "equations": "<<6*2=12>> #### 12",
    "none": "#### 12",
  }
  task = TASKS["word_problems"](path=path)
  example = Example("", ("#### 1200",))
  assert task.verify(example, "no thought #### 1,200").right
  assert task.verify(example, "1200").reward == 0 and task.verify(example, "#### 12").reward == 0.1


def test_f1_by_hand():
  """Precision 2/3, recall 2/4."""
  assert token_f1("a b c", ("A b d e", "x")) == pytest.approx(
    2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
  )
  assert token_f1("a a", ("a b",)) == 0.5 and token_f1("", ("",)) == 1


def test_infilling_takes_words_out_of_the_bundled_text():
  task = TASKS["infilling"](hole=2, context=3)
  example = task.examples("validation")[5]
  assert task.verify(example, example.answers[0]).right
  left, _, right = example.prompt.partition(" _____ ")
  whole = f"{left} {example.answers[0]} {right}"
  assert len(whole.split()) == 8
  texts = [" ".join(text.split()) for text in task._text().documents("validation")]
  assert any(whole in text for text in texts)


@pytest.mark.skipif(not DATA.exists(), reason="no benchmark data; set DIFFUSION_TEXT_DATA")
@pytest.mark.parametrize(
  "name,place,count",
  [
    ("countdown3", "countdown/cd3_valid.txt", 1000),
    ("countdown5", "countdown/cd5_test.txt", 1000),
    ("sudoku9", "sudoku/test.csv", 1000),
    ("multiplication", "multiplication/4_by_4_mult_valid.txt", 1000),
    ("scan", "scan/tasks_test_simple.txt", 4182),
    ("word_problems", "gsm8k/test.jsonl", 1319),
  ],
)
def test_published_files_are_read_and_solved(name, place, count):
  task = TASKS[name](path=str(DATA / place))
  examples = task.examples("all")
  assert len(examples) == count
  if name == "multiplication":
    thoughts = TASKS[name](path=str(DATA / place), thoughts=True)
    assert all(thoughts.solve(one.prompt) == one.answers[0] for one in thoughts.examples("all"))
  if name != "word_problems":
    assert all(task.verify(one, task.solve(one.prompt)).right for one in examples[:20])
