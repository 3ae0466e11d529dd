"""Math word problems, solved in words by a causal language model (GSM8K, Cobbe et al. 2021).

Prompts, stops and metrics are those of lm-eval 0.4 in its task gsm8k, few-shot: solved problems
precede each problem, the solution is generated greedily, and its answer is a number.
`strict_match` takes the first number after `####`, as the shown solutions write it,
`flexible_match` the last number of the text. lm-eval draws other shots for each problem; here they
are the same, the first of the file (its sampler `first_n`), so a model reads them once.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.tasks.continuation import FewShotTask, prompt_of
from stillhouse.tasks.encoded import EncodedExample, TextExample
from stillhouse.tasks.metrics import MetricSamples, mean
from stillhouse.tasks.settings import WordProblemTask

STOPS = ("Question:", "</s>", "<|im_end|>")
MARK = "#### "  # before the answer of a solution
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED_IN_ANSWERS = (",", r"\$", r"(?s).*#### ", r"\.$")
PREPARED = "chain_of_thought"  # a column of files prepared for scoring


class WordProblem(FewShotTask[WordProblemTask]):
    """The number at the end of a generated solution."""

    def generation(self) -> dict[str, Any]:
        return super().generation() | {"stop": STOPS}

    def read(self, path: Path, *, labeled: bool = True) -> list[TextExample]:
        """Problems and their solutions, from the columns `question` and `answer`, or `context`,
        `chain_of_thought` and `answer`; the first `shots` rows are shown and not scored."""
        rows = read_rows(path, "question", keep_blank=not labeled)
        shots = self.recipe.shots
        found = [_problem(row, labeled or number < shots) for number, row in enumerate(rows)]
        return self._without_shots(found, path)

    def _sequences(
        self, example: TextExample, tokenizer: PreTrainedTokenizerFast
    ) -> list[EncodedExample]:
        """The prompt; one that is too long loses its beginning."""
        shown = [f"{_asked(each)} {each.target}\n\n" for each in self._shots]
        text = "".join([*shown, _asked(example)])
        ids = tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"]
        room = self._room(1)
        return prompt_of(ids[-room:], is_truncated=len(ids) > room)

    def predict(
        self, example: TextExample, sequences: Sequence[EncodedExample], outputs: Sequence[str]
    ) -> str:
        (text,) = outputs
        return text

    def metric_samples(
        self, predictions: Sequence[str | None], examples: Sequence[TextExample]
    ) -> dict[str, MetricSamples]:
        """Both metrics; NaN where a prediction is None, as of a model that diverged."""
        pairs = list(zip(predictions, examples, strict=True))
        found = {}
        for name, find in (("strict_match", strict_answer), ("flexible_match", flexible_answer)):
            is_right = [
                np.nan if text is None else float(find(text) == _normalized(str(each.target)))
                for text, each in pairs
            ]
            found[name] = MetricSamples(mean, np.array(is_right), np.array(is_right))
        return found

    def result(self, prediction: str) -> Any:
        return {"generated_text": prediction, "answer": flexible_answer(prediction)}


def strict_answer(text: str) -> str | None:
    """The first number after `####`, as text; None without one."""
    return next((_normalized(found[1]) for found in STRICT.finditer(text)), None)


def flexible_answer(text: str) -> str | None:
    """The last number of a text, as text; None without one."""
    found = [each[0] for each in FLEXIBLE.finditer(text)]
    return _normalized(found[-1]) if found else None


def _problem(row: Row, has_solution: bool) -> TextExample:
    """The problem of a row in one of the two forms."""
    is_prepared = PREPARED in row.fields
    question = row.text("context" if is_prepared else "question")
    if not has_solution:
        return TextExample(question, where=row.where)
    solution = row.text("answer")
    if is_prepared:
        solution = f"{row.text(PREPARED)}\n{MARK}{solution}"
    if strict_answer(solution) is None:
        raise row.wrong("answer", f"a solution that ends with {MARK.strip()} and a number")
    return TextExample(question, target=solution, where=row.where)


def _asked(example: TextExample) -> str:
    return f"Question: {example.text}\nAnswer:"


def _normalized(answer: str) -> str:
    """An answer without what does not count in a comparison."""
    for pattern in IGNORED_IN_ANSWERS:
        answer = re.sub(pattern, "", answer)
    return answer.lower()
