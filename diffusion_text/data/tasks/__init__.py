"""Tasks: prompts with right answers, their splits, and verifiers with a reward in [0, 1].

`TASKS` names them; `--config.data.task=NAME` trains on one, and `config.data.task.OPTION` sets its
options. A class outside of this table is named as `package.module:Class`. docs/tasks.md lists all.
"""

from diffusion_text.data.tasks.arithmetic import Addition, Multiplication
from diffusion_text.data.tasks.contract import (
  Example,
  Task,
  TaskText,
  Verdict,
  check_rows,
)
from diffusion_text.data.tasks.countdown import Countdown3, Countdown4, Countdown5
from diffusion_text.data.tasks.infilling import Infilling
from diffusion_text.data.tasks.iteration import Composition, Needles, Parity
from diffusion_text.data.tasks.logic import BooleanFormula, Satisfiability
from diffusion_text.data.tasks.scan import Scan
from diffusion_text.data.tasks.sequences import (
  Concepts,
  DataToText,
  Pairs,
  SplitAndRephrase,
  Summaries,
  WordProblems,
)
from diffusion_text.data.tasks.sudoku import Sudoku4, Sudoku9

TASKS = {
  "addition": Addition,
  "boolean": BooleanFormula,
  "composition": Composition,
  "concepts": Concepts,
  "countdown3": Countdown3,
  "countdown4": Countdown4,
  "countdown5": Countdown5,
  "data_to_text": DataToText,
  "infilling": Infilling,
  "multiplication": Multiplication,
  "needles": Needles,
  "paraphrase": Pairs,
  "parity": Parity,
  "satisfiability": Satisfiability,
  "scan": Scan,
  "simplification": Pairs,
  "split_and_rephrase": SplitAndRephrase,
  "sudoku4": Sudoku4,
  "sudoku9": Sudoku9,
  "summarisation": Summaries,
  "translation": Pairs,
  "word_problems": WordProblems,
}

__all__ = ["TASKS", "Example", "Task", "TaskText", "Verdict", "check_rows"]
