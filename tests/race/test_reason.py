"""The sentence that says why a candidate became the student."""

from stillhouse.race.race import reason


def entry(name: str, kl: float | None, agreement: float | None) -> dict:
    return {"name": name, "kl": kl, "top1_agreement": agreement}


def test_the_reason_names_figures_places_and_who_agrees_more():
    """The winner was third after the cut, and another agrees with the teacher more often."""
    a, b, c = entry("a", 0.5, 0.61), entry("b", 0.4123, 0.6), entry("c", None, None)
    found = reason([a, c, b, {"name": "d"}], [b, a, c])
    assert found == (
        "b has the lowest held-out KL to the teacher after distillation, 0.412 nats a token "
        "(others 0.500, not finite); it was number 3 of 4 by loss after the cut; the most likely "
        "tokens of a agree with the teacher's more often."
    )


def test_the_reason_of_a_single_finalist_compares_with_no_other():
    a = entry("a", 0.5, 0.61)
    found = reason([a], [a])
    assert found.endswith(
        "0.500 nats a token; it was number 1 of 1 by loss after the cut; no other candidate was "
        "distilled to the end."
    )
