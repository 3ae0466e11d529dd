"""The teacher with the student's vocabulary: a named teacher and tokens/ -> teacher/.

Its logits are those of the tokens that stay. So its distribution is the teacher's, restricted to
these and renormalized, wherever it is read: with p the teacher's distribution, q the student's and
K the tokens that stay, the soft target is

    KL(p / P || q),  P = sum over K of p

The student has no outcome for the other tokens, whose mass is 1 - P. By the chain rule the KL
divergence of the whole distributions is a term that no student changes plus P times this one.
"""

from stillhouse.models.folder_check import weight_dtype
from stillhouse.models.load import load_model, save_model
from stillhouse.models.vocabulary import keep_tokens
from stillhouse.runs.manifest import Inputs, commit_folder, fingerprint_of
from stillhouse.runs.paths import RunFolder
from stillhouse.stages.context import ModelRef, StageContext
from stillhouse.tokens.tokenizer import open_tokenizer
from stillhouse.tokens.vocabulary import read_kept


def trimmed_inputs(run: RunFolder, start: ModelRef) -> Inputs:
    """What the teacher is made from."""
    sources = {"tokens": fingerprint_of(run.tokens), "start": start.fingerprint}
    return Inputs("teacher", {}, sources)


def trim_teacher(context: StageContext, start: ModelRef, inputs: Inputs) -> None:
    """Commit the named teacher's rows of the tokens that stay as `teacher/`."""
    run = context.run
    context.require(run.tokens, "prepare")
    context.verify(run.tokens)
    _, whole = load_model(start.folder)
    teacher = keep_tokens(whole, read_kept(run.tokens))
    stored = weight_dtype(start.folder, whole.config)
    teacher.to(dtype=stored)  # pyright: ignore[reportCallIssue, reportArgumentType]
    facts = {"parameters": {"whole": whole.num_parameters(), "trimmed": teacher.num_parameters()}}
    with commit_folder(run.teacher, inputs, facts, overwrite=context.overwrite) as folder:
        save_model(teacher, open_tokenizer(run.tokens), folder)
