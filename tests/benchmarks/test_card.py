"""Each number of a card on the site leads to the measurement that it comes from."""

from benchmarks.card import Source, linked, measurement_page

CARD = """---
model-index: [{value}]
---

# A card of 2026

Loss {loss:.2f} nats ({share:.0f} % of the teacher's), {verdict} by 0.05. Seed 0.

## Reproducing this model

temperature {loss}
"""


def render(files):
    student, teacher = files["evaluation"]["student"], files["evaluation"]["teacher"]
    verdict = "worse" if student > teacher * 1.25 else "no worse"
    share = 100 * student / teacher
    card = CARD.format(value=student, loss=student, share=share, verdict=verdict)
    return card, {"evaluations": {"0": files["evaluation"]}, "unused": 7}


def test_numbers_lead_to_their_measurements():
    """Those that do not come from one stay as they are, as do the front matter and the recipe; a
    number that would change the sentence is changed by less."""
    files = {"evaluation": {"teacher": 2.5, "student": 3.0, "layers": [1, 2]}}
    card, shown = linked(Source(files, render), "m.md")
    assert card.startswith("# A card of 2026\n")
    assert "Loss [3.00](m.md#evaluations-0-student) nats" in card
    assert "([120](m.md#evaluations-0-student) % of the teacher's)" in card
    assert "no worse by 0.05. Seed 0." in card
    assert card.endswith("temperature 3.0\n")
    assert shown == {"evaluations.0.student": 3.0}
    page = measurement_page("m", shown)
    assert '| <a id="evaluations-0-student"></a>`evaluations.0.student` | 3.0 |' in page
