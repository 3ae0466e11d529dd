"""Models with a task: they classify, answer, tag or embed, or are prompted.

Axes: D hidden size, N texts.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.inference.arguments import checked_arguments, examples_of, questions_of, texts_of
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel
from stillhouse.tasks.continuation import Continuation
from stillhouse.tasks.embeddings import Embeddings
from stillhouse.tasks.encoded import TextExample
from stillhouse.tasks.gender_polarity import GenderPolarity
from stillhouse.tasks.question_answering import QuestionAnswering
from stillhouse.tasks.squad import Question
from stillhouse.tasks.task import Task, predict
from stillhouse.tasks.template_prompts import Templates
from stillhouse.tasks.text_classification import TextClassification, TextRegression
from stillhouse.tasks.token_classification import TokenClassification, words_in
from stillhouse.tasks.word_problem import WordProblem
from stillhouse.wording import counted


class TaskModel(LoadedModel):
    """A model with the head of a task; tasks that only have metrics use this class itself."""

    pipeline_task = "feature-extraction"
    task: Any

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Task
    ) -> None:
        super().__init__(model, tokenizer)
        self.task = task

    def predictions(self, examples: Sequence[Any]) -> list[Any]:
        """The task's predictions for its examples, in order; warns of truncated texts."""
        predicted, num_truncated = self.predictions_and_cuts(examples)
        if num_truncated:
            warnings.warn(cut_text(num_truncated, self.task), stacklevel=4)
        return predicted

    def predictions_and_cuts(self, examples: Sequence[Any]) -> tuple[list[Any], int]:
        """The predictions, and the number of truncated texts."""
        encoded = self.task.encode(examples, self.tokenizer)
        num_truncated = sum(sequence.is_truncated for own in encoded for sequence in own)
        return predict(self.task, self.model, examples, encoded), num_truncated

    def _results(self, examples: Sequence[Any], single: bool) -> Any:
        results = [self.task.result(each) for each in self.predictions(examples)]
        return results[0] if single else results


class TextClassifier(TaskModel):
    """Text classification, with one or several labels per text, and regression."""

    pipeline_task = "text-classification"

    @checked_arguments
    def classify(self, text: Any, pair: Any = None) -> Any:
        """The most likely label with its probability; for multi-label models all labels that
        apply; for regression the value.

        Args:
            text: A text; a pair of texts as a tuple, or as a dictionary of `text` and `text_pair`;
                or a list of any of these, for which a list is returned.
            pair: The second text, or the list of second texts, of `text`.

        Raises:
            RecipeError: an input of another form; so too below.
        """
        return self._results(*examples_of(text, pair))

    def label_scores(self, text: str) -> list[dict[str, Any]]:
        """Every label with its probability, the most likely first; or the value of a regression."""
        (scores,) = self.predictions([TextExample(text)])
        if isinstance(self.task, TextRegression):
            return [self.task.result(scores)]
        return [
            {"label": label, "score": float(score)}
            for label, score in sorted(
                zip(self.task.labels, scores, strict=True), key=lambda pair: -pair[1]
            )
        ]


class QuestionAnswerer(TaskModel):
    """Extractive question answering."""

    pipeline_task = "question-answering"

    @checked_arguments
    def answer(
        self, question: Any, context: Any = None, *, handle_impossible_answer: bool = False
    ) -> Any:
        """The span of the context that answers the question.

        Args:
            question: A question; a dictionary of `question` and `context`; or a list of either,
                for which a list is returned.
            context: The context, or the list of contexts, of the questions.
            handle_impossible_answer: Return an empty answer if the model finds it more likely, by
                more than its threshold, that the context has none.
        """
        pairs, single = questions_of(question, context)
        answers = [
            self.task.answer(each, handle_impossible_answer=handle_impossible_answer)
            for each in self.predictions([Question("", *pair, ()) for pair in pairs])
        ]
        return answers[0] if single else answers


class TokenClassifier(TaskModel):
    """Token classification, such as named-entity recognition."""

    pipeline_task = "token-classification"

    @checked_arguments
    def tag(self, text: Any) -> Any:
        """The entities in a text, as a list; for a list of texts, one such list per text."""
        texts, single = texts_of(text, "text")
        return self._results([words_in(each) for each in texts], single)


class Embedder(TaskModel):
    """Sentence embeddings."""

    @checked_arguments
    def embed(self, texts: Any) -> Float[np.ndarray, "*N D"]:
        """The embedding of a text (D,); for a list of N texts, an array (N, D). Embeddings have
        length 1 unless the model's own files say otherwise."""
        given, single = texts_of(texts, "texts")
        rows = self.predictions([TextExample(text) for text in given])
        embeddings = np.concatenate(
            [np.zeros((0, self.model.config.hidden_size), np.float32), *rows]
        )
        return embeddings[0] if single else embeddings


class PromptedModel(TaskModel):
    """A causal language model whose generated text is the prediction."""

    def predictions_and_cuts(self, examples: Sequence[Any]) -> tuple[list[Any], int]:
        """As of `TaskModel`; all prompts share the steps of the model, and their common start.

        Raises:
            NotFiniteError: the model's logits are not finite.
        """
        encoded = self.task.encode(examples, self.tokenizer)
        prompts = [tuple(sequence.input_ids.tolist()) for (sequence,) in encoded]
        model = CausalLM(self.model, self.tokenizer, self.task.recipe.max_length)
        settings, seeds = Generation(**self.task.generation()), self.task.seeds(examples)
        texts = model.continue_all(prompts, settings, seeds)
        predicted = [
            self.task.predict(*each) for each in zip(examples, encoded, texts, strict=True)
        ]
        return predicted, sum(sequence.is_truncated for (sequence,) in encoded)


TASK_MODELS: Mapping[type, type[TaskModel]] = {
    TextClassification: TextClassifier,
    TextRegression: TextClassifier,
    QuestionAnswering: QuestionAnswerer,
    TokenClassification: TokenClassifier,
    Embeddings: Embedder,
    Continuation: PromptedModel,
    WordProblem: PromptedModel,
    Templates: PromptedModel,
    GenderPolarity: PromptedModel,
}


def task_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task: Task) -> TaskModel:
    """A model in memory with its tokenizer and task."""
    return TASK_MODELS.get(type(task), TaskModel)(model, tokenizer, task)


def cut_text(number: int, task: Task) -> str:
    """The warning for truncated texts."""
    are = counted(number, "text has", "texts have")
    return f"{are} more than {task.text_length} tokens; the rest was not read."
