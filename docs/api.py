"""The functions and classes of docs/reference/api.md, with their signatures and docstrings."""

import inspect
import re
from collections.abc import Callable, Iterator

import stillhouse
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.masked_lm import MaskedLM
from stillhouse.inference.task_model import Embedder, QuestionAnswerer, TextClassifier
from stillhouse.inference.task_model import TokenClassifier as Tagger
from stillhouse.integrations.cache import ExampleCache, write_teacher_cache
from stillhouse.integrations.loss import DistillationLoss, DistillationOutput
from stillhouse.integrations.trainer import DistillationTrainer

METHODS = {
    CausalLM: ("generate", "chat", "features"),
    MaskedLM: ("fill_mask", "features"),
    TextClassifier: ("classify",),
    QuestionAnswerer: ("answer",),
    Tagger: ("tag",),
    Embedder: ("embed",),
}


def package_functions() -> str:
    """The functions of `stillhouse`."""
    names = [name for name in stillhouse.__all__ if inspect.isfunction(getattr(stillhouse, name))]
    return _sections((f"stillhouse.{name}", getattr(stillhouse, name)) for name in sorted(names))


def model_methods() -> str:
    """The methods of what `stillhouse.load` returns."""
    return _sections(
        (f"{owner.__name__}.{name}", getattr(owner, name))
        for owner, names in METHODS.items()
        for name in names
    )


def integrations() -> str:
    """What a training loop of one's own uses."""
    return _sections(
        [
            ("stillhouse.integrations.loss.DistillationLoss", DistillationLoss),
            ("DistillationLoss.__call__", DistillationLoss.__call__),
            ("DistillationLoss.count_rows", DistillationLoss.count_rows),
            ("stillhouse.integrations.loss.DistillationOutput", DistillationOutput),
            ("stillhouse.integrations.trainer.DistillationTrainer", DistillationTrainer),
            ("stillhouse.integrations.cache.write_teacher_cache", write_teacher_cache),
            ("stillhouse.integrations.cache.ExampleCache", ExampleCache),
        ]
    )


def _sections(members: "Iterator[tuple[str, Callable[..., object]]] | list") -> str:
    return "\n\n".join(_section(name, member) for name, member in members)


def _section(name: str, member: Callable[..., object]) -> str:
    parts = [f"### `{name}`", f"```text\n{_signature(name, member)}\n```"]
    parts.append(_prose(inspect.getdoc(member) or ""))
    if inspect.isclass(member) and (own := member.__dict__.get("__init__")):
        parts.append(_prose(_described(inspect.getdoc(own) or "")))
    return "\n\n".join(part for part in parts if part)


def _described(docstring: str) -> str:
    """The docstring of an __init__ that is written, without that which dataclasses make."""
    return docstring if docstring.startswith("Args:") else ""


def _signature(name: str, member: Callable[..., object]) -> str:
    """One parameter a line, with types as they are written."""
    found = inspect.signature(member)
    own = [each for each in found.parameters.values() if each.name != "self"]
    kinds, star, lines = inspect.Parameter, False, []
    for each in own:
        if each.kind == kinds.VAR_POSITIONAL:
            star = True
        elif each.kind == kinds.KEYWORD_ONLY and not star:
            star = True
            lines.append("    *,")
        lines.append(f"    {_parameter(each)},")
    result = "" if found.return_annotation is inspect.Signature.empty else _returns(found)
    short = name.rpartition(".")[2] if not name.startswith("Distillation") else name
    if len(lines) < 2:
        return f"{short}({' '.join(line.strip().rstrip(',') for line in lines)}){result}"
    return "\n".join([f"{short}(", *lines, f"){result}"])


def _parameter(each: inspect.Parameter) -> str:
    text = _plain(str(each.replace(default=inspect.Parameter.empty)))
    return text if each.default is inspect.Parameter.empty else f"{text} = {each.default!r}"


def _returns(found: inspect.Signature) -> str:
    written = inspect.formatannotation(found.return_annotation)
    return f" -> {_plain(written)}"


def _plain(text: str) -> str:
    """A parameter or type without the modules of its types."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])|\bpathlib\.", "", text).replace("'", "")


def _prose(docstring: str) -> str:
    """A docstring in Markdown: its sections as lists."""
    lines = []
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Raises|Attributes|Returns):", line):
            lines += [f"{line.rstrip(':')}:", ""]
        elif match := re.fullmatch(r"    (\w+): (.*)", line):
            lines.append(f"- `{match[1]}`: {match[2]}")
        else:
            lines.append(re.sub(r"^    +", "  ", line))
    return "\n".join(lines).strip()
