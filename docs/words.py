"""The words of docs/contributing/renamed.md: what a thing was called, what it is called, and how
the old word is found. tests/test_words.py keeps the old words out.

    python docs/words.py [PATH ...]

prints each old word that is left, with its file and the text around it.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".js", ".html", ".css", ".yaml"}
# The page itself, and the log of experiments as it was written.
EXEMPT = {
    "docs/contributing/renamed.md",
    "docs/words.py",
    "docs/results/experiments.md",
    "tests/test_words.py",
}


@dataclass(frozen=True)
class Name:
    """An identifier: found as a whole Python name outside strings and comments, and in backticks.

    Args:
        old: The names, separated by ", ".
        new: The names that replaced them.
        within: Regular expression of the paths to search; a common word is searched for only where
            it had its old meaning.
    """

    old: str
    new: str
    within: str = ""

    @property
    def key(self) -> str:
        return self.old.partition(",")[0]

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.old.split(", "))

    @property
    def planted(self) -> list[str]:
        return [f"def {name}(): pass" for name in self.names]

    def search(self, source: "Source") -> list[str]:
        return sorted(self.names & source.names) if re.search(self.within, source.path) else []


@dataclass(frozen=True)
class Phrase:
    """Words of prose, messages, keys and file names: a regular expression over the text, whose line
    breaks, comment marks and joined string literals count as one space.

    Args:
        old: The phrases as the page shows them, separated by "; ".
        new: What is written now.
        pattern: Regular expression of the old phrases; by default the phrases themselves.
        planted: Texts in which the pattern is found, separated by "; "; by default `old`.
        within: Regular expression of the paths to search.
    """

    old: str
    new: str
    pattern: str = ""
    planted_texts: str = ""
    within: str = ""

    @property
    def key(self) -> str:
        return self.old.partition(";")[0]

    @cached_property
    def regex(self) -> re.Pattern[str]:
        literal = "|".join(rf"\b{re.escape(each)}\b" for each in self.old.split("; "))
        return re.compile(self.pattern or literal, re.IGNORECASE)

    @property
    def planted(self) -> list[str]:
        return (self.planted_texts or self.old).split("; ")

    def search(self, source: "Source") -> list[str]:
        if not re.search(self.within, source.path):
            return []
        return [
            source.flat[max(0, found.start() - 30) : found.end() + 30]
            for found in self.regex.finditer(source.flat)
        ]


@dataclass(frozen=True)
class Source:
    """A file's path below the repository, and its text."""

    path: str
    text: str

    @cached_property
    def flat(self) -> str:
        """The text; line breaks, comment marks and joined string literals are single spaces."""
        joined = re.sub(r"""["'`]?\s*\n\s*(?:#:?\s|//\s?|\*\s|f?["'`](?=\S))?\s*""", " ", self.text)
        return re.sub(r"\s+", " ", joined)

    @cached_property
    def names(self) -> frozenset[str]:
        """Python's names outside strings and comments, names in backticks, and, anywhere, names
        with an underscore: keys of recipes and of JSON."""
        quoted = {
            name
            for code in re.findall(r"`([^`\n]{1,80})`", self.text)
            for name in re.findall(r"[A-Za-z_]\w*", code)
        } | set(re.findall(r"\b\w*_\w+\b", self.text))
        if not self.path.endswith(".py"):
            return frozenset(quoted)
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return frozenset(quoted | {each.string for each in tokens if each.type == tokenize.NAME})


QUESTIONS = r"^(?!.*last_word).*(/(tasks|finetuning|inference|serving|recipes)/|README|docs/)"
TASKS = r"/(tasks|finetuning|recipes|pipeline|report)/|README|docs/"

NAMES = (
    Name("Work, count_work", "StepCost, count_flops"),
    Name("multiply_adds, forward_multiply_adds", "flops, forward_flops"),
    Name("floor_share", "mfu"),
    Name("floor_tokens_per_second", "roofline_tokens_per_second"),
    Name("Floor", "Roofline"),
    Name("same_choice", "top1_agreement"),
    Name("token_s512", "token_sliding"),
    Name("stride_s512", "stride"),
    Name("loss_over_control, loss_over_control_interval", "loss_minus_control"),
    Name("Taught", "TeacherRows"),
    Name("Lesson, _lesson", "ModelWithLoss"),
    Name("FixedVisits", "FixedMaskSource"),
    Name("visit, visits, num_visits", "sample, epoch"),
    Name("hard_target", "hard_label"),
    Name("num_transfer", "num_unlabeled"),
    Name("transfer", "unlabeled", within=TASKS + r"|settings\.py|tokens/"),
    Name("Steps", "TrainStep", within=r"/training/"),
    Name("_refused", "_out_of_memory", within=r"/training/"),
    Name("_disarm", "_reset_reducer"),
    Name("what_is_wrong", "skip_reason"),
    Name("keep_few_activations", "enable_activation_checkpointing"),
    Name("from_first", "on_rank0"),
    Name("meet", "barrier"),
    Name("leave", "shutdown", within=r"/training/"),
    Name("joined_ranks", "init_distributed"),
    Name("whole_model", "gather_model", within=r"/training/|tests/training/"),
    Name("Part", "ShardFiles", within=r"/training/"),
    Name("shaping_part", "result_settings"),
    Name("_parts_agree", "_check_consistency"),
    Name("wanted_models", "models_to_train"),
    Name("scratch_config", "config_from_scratch"),
    Name("row_wise", "position_wise"),
    Name("at_rows", "compute_only_rows"),
    Name("masks_as_given", "explicit_attention_mask"),
    Name("AttentionTap", "QKVHook"),
    Name("StudentKind", "StudentMapping"),
    Name("carry", "copy_layers", within=r"/student/|/families/"),
    Name("shallower", "with_num_layers"),
    Name("Encoded", "EncodedExample"),
    Name("Says", "OutputKind"),
    Name("ask", "predict", within=r"/(tasks|finetuning|inference|evaluation)/"),
    Name("fitted", "resolve_configs", within=r"/finetuning/|/student/"),
    Name("Found", "ModelRef", within=r"/(finetuning|tasks|models|inference)/"),
    Name("some_of", "subsample"),
    Name("Measure", "MetricSamples", within=r"/(tasks|finetuning|evaluation)/"),
    Name("Place", "Slot", within=r"/inference/"),
    Name("Piece", "Chunk", within=r"/inference/"),
    Name("_Kept", "KVCache"),
    Name("PromptRead", "PrefillDone"),
    Name("Ticket", "RequestHandle"),
    Name("tell", "on_event", within=r"/(inference|serving)/"),
    Name("HALF", "REPLACEMENT_CHARACTER"),
    Name("Resumer", "TokenHealer"),
    Name("Hosted", "ServedModel"),
    Name("Served", "ClientDep"),
    Name("Told", "StreamEvent"),
    Name("Asked", "EditorRequest"),
    Name("unless_gone", "cancel_on_disconnect"),
    Name("gate, Gate", "quantization_check", within=r"/inference/|/serving/"),
    Name("likeliest", "top_logprobs"),
    Name("held_out", "splits", within=r"/(tokens|corpus)/"),
    Name("lead", "document_prefix_id", within=r"/(tokens|corpus|inference|families)/"),
    Name("UnfitError", "FastTokenizerMismatch"),
    Name("draw_standing", "dot_plot"),
    Name("state_outcome", "summarize_results"),
    Name("make_room", "archive_existing"),
    Name("aside", "backup", within=r"/(runs|training)/"),
    Name("longest_answer", "max_answer_length"),
    Name("question_length", "max_question_length"),
    Name("vector_cosine", "embedding_cosine"),
    Name("vector_mse", "embedding_mse"),
)

PHRASES = (
    Phrase(
        "reads / writes (of speed); reading speed; writing speed",
        "forward / generation throughput (tokens/s)",
        r"parameters \| reads\b|\b(reads|writes) \d[\d.]*x|\b(reading|writing) speed\b",
        "| | parameters | reads | writes |; it reads 1.68x; reading speed; writing speed",
    ),
    Phrase(
        "floor (of speed); of what this machine allows",
        "roofline; model FLOPs utilization",
        r"\bthe floor\b|\bof (its|a) (speed )?floor\b|what this machine allows|training[/.]floor",
        "training at the floor; of what this machine allows; stillhouse.training.floor",
    ),
    Phrase("multiply-adds", "FLOPs (2 x MACs)", r"multiply[- ]adds?\b"),
    Phrase(
        "drafts the teacher would accept; would be accepted by its teacher",
        "draft acceptance rate",
        r"drafts[^.]{0,20} would (be )?accept",
        "drafts the teacher would accept; drafts would be accepted by its teacher",
    ),
    Phrase(
        "same first choice; choose the same token first",
        "top-1 agreement",
        r"same first choice|choose the same (token )?first|first choice is the same",
    ),
    Phrase(
        "A less B; what its teacher was worth",
        "difference; effect of the teacher (paired)",
        r"teacher (was|is) worth|\b(student|teacher|control|loss|model) less (the|its|that)\b",
        "the student less the control; what its teacher was worth",
    ),
    Phrase("lesson", "data and objective", r"\blessons?\b"),
    Phrase(
        "visit (of a sequence)",
        "sample; epoch",
        r"\bvisits?\b|\bvisited\b",
        "a visit; visits",
        r"^(?!.*/web/)",
    ),
    Phrase("hard target", "hard label", r"\bhard[ -]targets?\b"),
    Phrase("right answer", "label", r"\bright answers?\b"),
    Phrase(
        "texts without answers; examples without answers",
        "unlabeled data",
        r"\b(texts?|examples|rows|data) without answers?\b",
    ),
    Phrase(
        "data.transfer; transfer examples",
        "data.unlabeled",
        r"data\.transfer|\btransfer (examples|texts|rows|data)\b|\btransfer: ",
        "data.transfer; transfer texts",
    ),
    Phrase("goes on from a model", "fine-tunes", r"\bgo(es)? on from a model\b"),
    Phrase("row-wise", "position-wise", r"\brow-?wise\b"),
    Phrase("less precision; less precise", "lower precision"),
    Phrase("likeliest", "most likely; top_logprobs", r"\blikeliest\b"),
    Phrase(
        "numbers that are none",
        "NaN or infinity",
        r"numbers? that (are|is) (none|not one|not a number)\b",
    ),
    Phrase(
        "the processor; processors",
        "CPU",
        r"\bthe processors?\b|\b(a|on|two|per) processors?\b|"
        r"\bprocessor (time|seconds)\b",
        "on the processor; two processors",
    ),
    Phrase(
        "vectors (of text); sentence vectors; one with vectors",
        "embeddings",
        r"\b(sentence|text)s?'? vectors?\b|\bwith vectors\b",
        "sentence vectors; the first with vectors",
    ),
    Phrase(
        "classes, numbers (of tasks)",
        "regression",
        r"\bclasses, numbers\b|\bnumbers, entities\b",
        "classes, numbers, answers",
    ),
    Phrase(
        "passage (of a question)",
        "context",
        r"\b(of|in) (a|the|its) passages?\b(?! \(LAMBADA)",
        "answers in a passage",
        QUESTIONS,
    ),
    Phrase(
        "serving/bodies.py; problems.py; guards.py; catalog.py; depends.py; hosted.py",
        "schemas, errors, middleware, models, dependencies, served_model",
        r"serving(\.| import |/)(bodies|problems|guards|catalog|depends|hosted)\b",
        "stillhouse.serving.bodies; from stillhouse.serving import problems; serving/guards.py",
    ),
    Phrase(
        "agreement.acceptance",
        "agreement.acceptance_rate",
        r"agreement\.acceptance\b|\"acceptance\"",
        'agreement.acceptance; {"acceptance": 1.0}',
    ),
    Phrase(
        "masking.draw; masking.keep; masking.random; masking.mask",
        "masking.sampling; masking.keep_fraction; masking.random_fraction; masking.mask_fraction",
        r"masking\.(draw|keep|random|mask)\b|masking: \{[^}]*\b(draw|keep|random|mask): ",
        "tokens.masking.draw; masking: {keep: 0.1}",
    ),
    Phrase(
        "task: {length}; squad: {step}",
        "task: {max_length, doc_stride}",
        r"task: \{[^}]*\b(length|step): |task\.(length|step)\b",
        "task: {kind: sst2, length: 64}; task.step",
    ),
    Phrase(
        "made anew; made again; anew",
        "rewritten; recomputed",
        r"\bmade (anew|again)\b|\banew\b",
        "made anew; made again; read anew",
    ),
    Phrase(
        "going on; goes on; go on",
        "resuming; resumes; resume; continue",
        r"\b(going|goes|go|went) on\b(?! to\b)(?! with\b)",
    ),
    Phrase("is told; are told", "is given; is reported", r"\b(is|are|be) told\b"),
    Phrase("so many; as many as there are", "N", r"\bso many\b", "by so many processes"),
    Phrase("apart by commas", "comma-separated", r"\bapart by\b"),
    Phrase("held against", "compared with", r"\b(held|hold|holds|holding) against\b"),
    Phrase("in company", "batched", r"\bin (any )?company\b", "the same in company as alone"),
    Phrase("begun", "started", r"\bbegun\b"),
    Phrase(
        "stands; stood",
        "is; was",
        r"\bstands?(?!ard|alone|-)\b(?! for\b)|\bstood\b",
        "stands; stood; it stands in",
    ),
    Phrase("with what is right", "labeled", r"\bwhat is right\b"),
    Phrase(
        "--seconds (of a server)",
        "--request-timeout",
        r"serve[^\n|]{0,60}--seconds|`--seconds",
        "`--seconds`",
        r"README|docs/|serving|cli",
    ),
    Phrase(
        "takes something damaged for something whole",
        "loads damaged data",
        r"\b(taken?|takes|took) for (something )?whole\b|damaged for something",
        "takes something damaged for something whole; no part is taken for whole",
    ),
    Phrase("but for rounding", "up to rounding"),
    Phrase(
        "mask as it is, and none for none",
        "explicit mask, or none",
        r"\bnone for none\b",
        "takes a batch's mask as it is, and none for none",
    ),
    Phrase(
        "what it says of",
        "the teacher's distribution; predictions",
        r"\b(it|teacher|model|they) says? of\b|\bsaid of\b",
        "what it says of every position",
    ),
    Phrase(
        "what it does not know it refuses",
        "unknown parameters are rejected",
        r"\bdoes not know it refuses\b",
    ),
    Phrase("makes room at once", "batched continuously", r"\bmakes room\b"),
    Phrase(
        "is none of; are none",
        "is not one of",
        r"(?-i:(?<!here )\b(is|are) none\b)",
        "is none of the model's; which are none",
    ),
)

WORDS: tuple[Name | Phrase, ...] = (*NAMES, *PHRASES)


def sources() -> Iterator[Source]:
    """Every file that is searched, without the table of renamed keys."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found += [
        each for part in ("src", "tests", "docs", "benchmarks") for each in (ROOT / part).rglob("*")
    ]
    for path in sorted(found):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SUFFIXES and path.is_file() and name not in EXEMPT:
            text = path.read_text(encoding="utf-8")
            yield Source(name, re.sub(r"RENAMED_KEYS = \{.*?\n\}", "", text, flags=re.DOTALL))


def old_words(source: Source) -> set[str]:
    """The entries that are found in a file, by their first word."""
    return {word.key for word in WORDS if word.search(source)}


def renamed_table(words: tuple[Name, ...] | tuple[Phrase, ...]) -> str:
    """Markdown: a row for each word, old and new."""
    mark = "`" if isinstance(words[0], Name) else ""
    rows = [
        f"| {_cell(word.old, ', ' if mark else '; ', mark)} | {_cell(word.new, ', ', mark)} |"
        for word in words
    ]
    return "\n".join(["| old | new |", "|---|---|", *rows])


def _cell(text: str, separator: str, mark: str) -> str:
    parts = text.split(separator) if mark else [text]
    return ", ".join(f"{mark}{part}{mark}" for part in parts).replace("|", "\\|")


def main() -> None:
    for source in sources():
        if len(sys.argv) == 1 or any(source.path.startswith(part) for part in sys.argv[1:]):
            for word in WORDS:
                for text in word.search(source):
                    print(f"{source.path}: {word.old} -> {word.new}: {text}")


if __name__ == "__main__":
    main()
