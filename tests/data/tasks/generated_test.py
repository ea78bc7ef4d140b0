"""Generated puzzles: right by other means than the task's own, refused when one digit is changed,
and in one split only.
"""

import functools
import itertools
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_text.data.splits import SPLITS
from diffusion_text.data.tasks import TASKS, Example, Task
from diffusion_text.data.tasks.contract import FORM_REWARD, TaskText, check_rows
from diffusion_text.data.tasks.generated import Generated, split_of
from diffusion_text.data.tasks.sudoku import count_solutions, solutions
from tests.conftest import ROOT

SMALL = {"train_size": 40, "held_out_size": 12}
OPTIONS = {
  "addition": {"digits": 2, "terms": 3},
  "countdown5": {"numbers": 4},
  "multiplication": {"digits": 3, "thoughts": True},
  "sudoku9": {"clues": 50, "train_size": 12, "held_out_size": 3},
}
GENERATED = sorted(name for name, cls in TASKS.items() if issubclass(cls, Generated))


@functools.cache
def task(name):
  return TASKS[name](**{**SMALL, **OPTIONS.get(name, {})})


def value_of(formula):
  """The value of a formula, by Python."""
  return eval(re.sub(r"!", " 1^", formula))


def is_right(name, prompt, text):
  """Whether an answer is right, worked out without the package."""
  if name == "addition":
    return int(text[::-1]) == sum(int(part[::-1]) for part in prompt.split("+")) and (
      not text.endswith("0")
    )
  if name == "multiplication":
    product = math.prod(int(part[::-1]) for part in prompt.split("*"))
    return int(text.split("####")[-1][::-1]) == product
  if name.startswith("countdown"):
    *numbers, target = prompt.split(",")
    left = list(map(int, numbers))
    for equation in text.split(","):
      first, _, second, result = re.fullmatch(r"(\d+)(\D)(\d+)=(\d+)", equation).groups()
      if eval(equation.split("=")[0]) != int(result):
        return False
      for number in (first, second):
        if int(number) not in left:
          return False
        left.remove(int(number))
      left.append(int(result))
    return left == [int(target)]
  if name.startswith("sudoku"):
    side = math.isqrt(len(prompt))
    box = math.isqrt(side)
    seen = {
      (kind, unit, digit)
      for i, digit in enumerate(text)
      for kind, unit in enumerate((i // side, i % side, (i // side // box, i % side // box)))
    }
    return len(seen) == 3 * side**2 and all(clue in ("0", d) for clue, d in zip(prompt, text))
  if name == "satisfiability":
    truth = {"abcdefghi"[i]: bit == "1" for i, bit in enumerate(text)}
    clause = re.compile(r"([+-])(\w)")
    return all(any(truth[name] == (sign == "+") for sign, name in clause.findall(each))
               for each in prompt.split(","))  # fmt: skip
  if name == "boolean":
    # The last is what Python says; the others are those of the brackets that it ends.
    return value_of(prompt) == int(text[-1]) and text == task(name).solve(prompt)
  if name == "composition":
    table, _, start = prompt.partition(":")
    f = dict(zip("abcdefghij", table))
    return all(f[x] == y for x, y in zip(start + text, text))
  if name == "parity":
    return all(int(bit) == prompt[: i + 1].count("1") % 2 for i, bit in enumerate(text))
  if name == "needles":
    return f"{prompt[-2:]}={text}" in prompt
  return text == task(name).solve(prompt)


def changed(text, rng):
  """The text with one digit, letter or word of it replaced by another that occurs in answers."""
  place = rng.choice([i for i, c in enumerate(text) if c.isalnum()])
  bits = set(text) <= {"0", "1"}
  letters = "01" if bits else "0123456789" if text[place].isdigit() else "abcdef"
  other = rng.choice([c for c in letters if c != text[place]])
  return text[:place] + other + text[place + 1 :]


@pytest.mark.parametrize("name", GENERATED)
@settings(max_examples=15, deadline=None)
@given(number=st.integers(0, 10_000), seed=st.integers(0, 10_000))
def test_answers_are_right_and_changed_ones_are_refused(name, number, seed):
  """The generator's answer and the solver's are right; an answer with one digit changed has the
  reward 1 if and only if it is right by other means, which only formulas with several solutions
  have.
  """
  chosen = task(name)
  examples = chosen.examples("test")
  example = examples[number % len(examples)]
  for answer in (*example.answers, chosen.solve(example.prompt)):
    assert is_right(name, example.prompt, answer)
    assert chosen.verify(example, answer) == (1.0, True, "")
    final = answer.rpartition("####")[2]  # of thoughts, the product alone is verified
    other = answer[: len(answer) - len(final)] + changed(final, random.Random(seed))
    verdict = chosen.verify(example, other)
    if name == "satisfiability":
      assert verdict.right == is_right(name, example.prompt, other)
    else:
      assert not verdict.right and verdict.reward in (0.0, FORM_REWARD) and verdict.reason
  assert chosen.verify(example, "").reward == 0 and not chosen.verify(example, "").form


@pytest.mark.parametrize("name", GENERATED)
def test_splits_are_disjoint_for_every_seed(name):
  """A group of puzzles has its split from a hash alone, so another seed's test puzzles are not in
  this seed's training, either."""
  chosen = task(name)
  other = type(chosen)(**{**SMALL, **OPTIONS.get(name, {}), "seed": 1})
  train = {example.prompt for example in chosen.examples("train")}
  for held in (chosen, other):
    for split in ("validation", "test"):
      prompts = [example.prompt for example in held.examples(split)]
      assert len(set(prompts)) == len(prompts) == held.held_out_size and not train & set(prompts)
  assert chosen.examples("test") != other.examples("test")
  assert chosen.examples("all") == sum((chosen.examples(split) for split in SPLITS), ())
  assert chosen.identity() != other.identity() and isinstance(chosen, Task)


def test_groups_know_what_is_the_same_puzzle():
  """Mutant: a group that is the prompt lets 1 + 2 be trained on and 2 + 1 be tested on."""
  addition = task("addition")
  same = list(itertools.permutations((12, 34, 56)))
  assert len({addition.group(puzzle) for puzzle in same}) == 1
  mutants = {split_of(addition.example(None, puzzle).prompt) for puzzle in
             [p for n in range(40) for p in itertools.permutations((12, 34, 56 + n))]}  # fmt: skip
  assert mutants == set(SPLITS)
  grid = next(solutions("0" * 16))
  assert task("sudoku4").group(grid) == task("sudoku4").example(random.Random(0), grid).answers[0]


def test_small_sudokus_have_one_solution_and_there_are_288_grids():
  for name in ("sudoku4", "sudoku9"):
    for example in task(name).examples("test"):
      assert count_solutions(example.prompt, 3) == 1
  assert sum(1 for _ in solutions("0" * 16)) == 288
  assert count_solutions("1100" + "0" * 12, 3) == 0  # a digit twice in a row
  assert count_solutions("0" * 81, 2) == 2


def test_solvers_say_when_there_is_nothing_to_find():
  assert task("countdown3").solve("1,1,1,99") is None
  assert task("sudoku4").solve("11" + "0" * 14) is None
  clauses = [f"{a}a{b}b{c}c" for a, b, c in itertools.product("+-", repeat=3)]
  formula = TASKS["satisfiability"](variables=3)
  assert formula.solve(",".join(clauses)) is None
  assert formula.solve(",".join(clauses[1:])) == "000"
  assert task("scan").solve("jump upwards") is None


def test_verdicts_say_what_is_wrong():
  countdown = task("countdown3")
  example = Example("92,22,39,75", ("92+22=114,114-39=75",))
  for text, reason in {
    "92+22=114,114-39=76": "does not hold",
    "92+22=114,92-39=53": "uses 92",
    "92+22=114,114+39=153": "the last result is 153",
    "92+22=114": "is not 2 equations",
    "22-92=0,39+36=75": "does not hold",
  }.items():
    assert reason in countdown.verify(example, text).reason, text
  sudoku = task("sudoku4")
  puzzle = Example("3400023000004003", ("3412123423414123",))
  assert "clue 3 in row 1, column 1" in sudoku.verify(puzzle, "1432123423414123").reason
  assert "twice in" in sudoku.verify(puzzle, "3412123423414113").reason


def test_scan_by_hand():
  """Lines of the paper (arXiv 1711.00350, figure 1)."""
  scan = task("scan")
  assert scan.solve("jump") == "I_JUMP"
  assert scan.solve("jump around right") == " ".join(["I_TURN_RIGHT I_JUMP"] * 4)
  assert scan.solve("turn left twice") == "I_TURN_LEFT I_TURN_LEFT"
  assert scan.solve("jump opposite left after walk around left") == " ".join(
    ["I_TURN_LEFT I_WALK"] * 4 + ["I_TURN_LEFT I_TURN_LEFT I_JUMP"]
  )


def test_a_puzzle_that_is_drawn_again_is_left_out():
  """Of 16 prompts about 13 are in training, and 10 draws without a repeat are hardly ever made.
  Mutant: every draw is kept.
  """
  prompts = [each.prompt for each in TASKS["parity"](bits=4, train_size=10).examples("train")]
  assert len(prompts) == 10 == len(set(prompts))


def test_too_many_examples_are_refused():
  few = TASKS["parity"](bits=3, train_size=9)
  with pytest.raises(ValueError, match=r"only about \d different examples for split='train', and"):
    few.examples("train")


def test_an_answer_longer_than_the_row_names_its_place():
  chosen = task("countdown3")
  sizes = np.array([len(document) + 1 for document in TaskText(chosen).documents("test")])
  check_rows(chosen, "test", sizes, max(sizes))
  with pytest.raises(ValueError, match=rf"^test example \d+: .* data.length >= {max(sizes)}"):
    check_rows(chosen, "test", sizes, max(sizes) - 1)


def test_the_examples_of_the_page_are_right():
  page = (ROOT / "docs" / "tasks.md").read_text()
  for name, options, prompt, answer in (
    ("addition", {}, "21+93", "15"),
    ("multiplication", {}, "21*93", "8640"),
    ("multiplication", {"thoughts": True}, "21*93", "801+0630####8640"),
    ("countdown3", {}, "92,22,39,75", "92+22=114,114-39=75"),
    ("satisfiability", {"variables": 4}, "+a-b+d,-a-c+d", "1001"),
    ("boolean", {"operations": 4}, "((1&0)|!(0^1))", "0100"),
    ("composition", {"symbols": 4, "times": 3}, "cadb:b", "acd"),
    ("parity", {"bits": 5}, "10110", "11011"),
    ("needles", {}, "fk=813 qz=450 ?qz", "450"),
  ):
    chosen = TASKS[name](**options)
    assert chosen.verify(Example(prompt, (answer,)), answer).right, name
    assert chosen.verify(Example(prompt, (answer,)), chosen.solve(prompt)).right, name
    shown = prompt.replace("|", "\\|").replace(" ?", " … ?")
    assert f"`{shown}`" in page and f"`{answer}`" in page, name
  assert all(f"`{name}`" in page or name[:-1] in page for name in TASKS)
