"""The laws of docs/concepts/correctness.md, and the tests that are marked with them."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
LAWS = {
    "shift": "A position's label is the next token of its document, and every token is predicted "
    "once.",
    "masks": "A masked position's label is the original token. Special tokens and padding "
    "are never masked, and a sequence is masked the same way in any batch.",
    "padding": "Padding changes no loss and no gradient.",
    "packing": "A document packed with others has the outputs and losses it has alone.",
    "accumulation": "A step's loss and gradient do not depend on its split into micro-batches: "
    "each term is divided once, by its rows in the whole step.",
    "ranks": "Training on several ranks gives the result of training on one, up to rounding.",
    "resume": "Training that was stopped and resumed ends with the same weights as uninterrupted "
    "training, to the bit.",
    "cache": "A cached teacher gives the live teacher's loss: exactly for the whole vocabulary, "
    "unbiased for a sample, coarse-grained for the top k.",
    "copy": "A student that equals its teacher has zero loss in every term.",
    "reload": "A saved model, loaded elsewhere, has the loss that was reported.",
    "formula": "Each loss is its published formula, compared with a float64 reference or with "
    "transformers' own loss.",
    "gradient": "Each hand-written gradient is the slope of its loss.",
}


def marked_tests() -> Iterator[tuple[str, str]]:
    """The name of each law with the id of each test that is marked with it."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for decorator in node.decorator_list:
                if ast.unparse(decorator).startswith("pytest.mark.law("):
                    assert isinstance(decorator, ast.Call)
                    (name,) = decorator.args
                    assert isinstance(name, ast.Constant)
                    yield str(name.value), f"{path.relative_to(TESTS.parent)}::{node.name}"


def law_table() -> str:
    """One row per law, with its tests.

    Raises:
        ValueError: a law without a test, or a marker of a law that is not here.
    """
    tests: dict[str, list[str]] = {name: [] for name in LAWS}
    for name, test in marked_tests():
        if name not in tests:
            raise ValueError(f"{test} carries the marker of an unknown law: {name}")
        tests[name].append(test)
    if without := [name for name, found in tests.items() if not found]:
        raise ValueError(f"no test carries the marker of {', '.join(without)}")
    rows = [
        f"| {name} | {LAWS[name]} | {'<br>'.join(f'`{test}`' for test in found)} |"
        for name, found in tests.items()
    ]
    return "\n".join(["| law | what holds | tests |", "|---|---|---|", *rows])
