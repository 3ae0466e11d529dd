"""What a reader of report.html sees."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
from tests.report.handmade import FIGURES, make_metrics, make_recipe, write_results

from stillhouse import units
from stillhouse.errors import RunError
from stillhouse.evaluation.settings import EvaluationRecipe
from stillhouse.report.write import write_report
from stillhouse.runs.manifest import read_manifest, verify
from stillhouse.runs.paths import RunFolder

# Elements that HTML closes by itself.
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects a page's elements and text, and insists that every tag is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(run: RunFolder, **settings: str) -> Page:
    write_report(make_recipe(**settings), run, [run])
    return Page(run.report.read_text(encoding="utf-8"))


def test_table_has_every_model_with_units_and_ratios(make_run):
    page = report(make_run({name: figures[0] for name, figures in FIGURES.items()}))
    for label in ("Teacher", "Student", "Control, same tokens", "Control, same time"):
        assert label in page.text
    for shown in (
        "5.0 M",
        "12.0 MB",
        "60% of teacher",
        "6,590 tokens/s",
        "1.60\N{MULTIPLICATION SIGN} teacher",
    ):
        assert shown in page.text
    assert "not trained here" in page.text


def test_the_perplexities_of_all_models_are_shown(make_run, losses):
    page = report(make_run(losses))
    for loss in losses.values():
        assert f"{math.exp(loss):.2f}" in page.text


def test_page_has_no_scripts_and_no_outside_resources(make_run, losses):
    run = make_run(losses)
    page = report(run)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "href", "srcset")
            assert not name.startswith("on")
            assert not re.search(r"https?:|//", value or "")
    html = run.report.read_text(encoding="utf-8")
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_user_text_is_escaped(make_run, losses):
    page = report(make_run(losses))
    assert "then <b>student</b> says <script>alert(1)</script>" in page.text
    assert 'If x < 3 & y > "4"' in page.text
    assert "/home/someone/runs/<tiny>/teacher" in page.text


def test_student_worse_than_its_control_is_reported(make_run, losses):
    page = report(make_run(losses | {"student": 3.40}))
    assert "The student is worse than its control: the teacher did not help." in page.text
    assert "its loss higher by 0.040 nats per token" in page.text


def test_controls_that_disagree_are_both_named(make_run, losses):
    page = report(make_run(losses | {"control_same_time": 3.31}))
    assert "better than its control of the same tokens, and worse than its control" in page.text


def test_without_a_control_the_effect_of_the_teacher_is_unknown(make_run, losses):
    del losses["control"]
    page = report(make_run(losses))
    assert "No control was trained. The effect of the teacher is unknown." in page.text


def test_training_loss_chart_has_no_validation_loss(make_run, losses):
    """The teacher was not measured on the training text: its validation loss would make the student
    seem to beat it."""
    run = make_run(losses)
    page = report(run)
    figures = run.report.read_text(encoding="utf-8").split("<figure>")
    [training] = [each for each in figures if "<b>Training loss (language modeling)" in each]
    assert "line student" in training
    assert "teacher" not in re.findall(r'class="line (\w+)', training)
    assert (
        "losses on the validation split, in the table above, are not comparable with these"
        in page.text
    )


def test_ratios_are_quotients_of_the_displayed_medians(tmp_path):
    """Over several seeds too: the median of the seeds' ratios, 1.25, is not what a reader finds."""
    run = RunFolder.at(tmp_path)
    seed_runs = [run.for_seed(seed) for seed in (0, 1, 2)]
    for seed, each, pair in zip(
        (0, 1, 2), seed_runs, ((100, 200), (400, 500), (800, 900)), strict=True
    ):
        write_results(each, {"teacher": 3.2, "student": 3.3}, seed=seed)
        evaluation = json.loads(each.evaluation.read_text())
        for name, speed in zip(("teacher", "student"), pair, strict=True):
            evaluation["models"][name]["speed"] = {"forward_tokens_per_second": float(speed)}
        evaluation["models"]["teacher"]["speed"]["forward_tokens_per_second"] *= 1 + seed % 2
        each.evaluation.write_text(json.dumps(evaluation))
    write_report(make_recipe(seed="[0, 1, 2]"), run, seed_runs)
    text = Page(run.report.read_text(encoding="utf-8")).text
    assert "800 tokens/s 100 to 800 tokens/s 500 tokens/s 200 to 900 tokens/s 0.62" in text
    assert "0.62\N{MULTIPLICATION SIGN} its forward throughput" in text


def test_noisy_speed_ratio_has_its_range_in_the_table(make_run, losses):
    run = make_run(losses)
    evaluation = json.loads(run.evaluation.read_text())
    speed = evaluation["models"]["student"]["speed"]
    speed["ratio_to_first"] = {"forward": [1.2, 2.1], "generate": None}
    run.evaluation.write_text(json.dumps(evaluation))
    shown = f"1.60{units.TIMES} teacher, noisy: 1.20{units.TIMES} to 2.10{units.TIMES}"
    assert shown in report(run).text


def test_each_difference_has_its_interval_in_the_table(make_run, losses):
    text = report(make_run(losses)).text
    minus = units.MINUS
    assert f"{minus}0.030 nats {minus}0.034 to {minus}0.026" in text
    assert "The 95 % interval is over the 40 documents of the text." in text


def test_scored_files_are_named(make_run, losses):
    """`evaluation.perplexity` names what is scored; a second text has a row of its own."""
    run = make_run(losses)
    evaluation = json.loads(run.evaluation.read_text())
    for model in evaluation["models"].values():
        model["perplexity_of"] = {"b.txt": {"token": 77.125}}
    run.evaluation.write_text(json.dumps(evaluation))
    recipe = make_recipe().model_copy(
        update={"evaluation": EvaluationRecipe(perplexity=["texts/a.txt", "b.txt"])}
    )
    write_report(recipe, run, [run])
    text = Page(run.report.read_text(encoding="utf-8")).text
    assert "On a.txt. Lower is better" in text
    assert "Loss on a.txt, in nats" in text
    assert "On the validation split" not in text
    assert "Perplexity per token, b.txt 77.12" in text


def test_without_a_control_no_control_is_described(make_run, losses):
    del losses["control"]
    run = make_run(losses)
    assert "A control is" not in report(run).text
    card = (run.student / "README.md").read_text(encoding="utf-8")
    assert "control is the same student" not in card


def test_one_seed_leaves_the_spread_between_seeds_unknown(make_run, losses):
    assert "the spread between seeds is unknown" in report(make_run(losses)).text


def test_a_loss_that_was_not_finite_is_marked_and_counted(make_run, losses):
    run = make_run(losses)
    run.metrics.write_text(make_metrics(["student", "control"], nan_at=12))
    page = report(run)
    shown = f"Student: 1 step without a finite value ({units.TIMES}), the first at 49.2 k tokens."
    assert shown in page.text
    marks = [a for tag, a in page.elements if tag == "path" and a.get("class") == "not-finite"]
    assert marks


def test_skipped_steps_are_reported(make_run, losses):
    run = make_run(losses)
    line = json.dumps({"model": "student", "step": 61, "loss": None, "skipped_steps": 2})
    run.metrics.write_text(run.metrics.read_text() + line + "\n")
    assert "Student: 2 optimizer steps were skipped" in report(run).text


def test_model_without_a_finite_loss_is_marked(make_run, losses):
    page = report(make_run(losses | {"student": None}))
    assert "The student's perplexity is not a finite number" in page.text
    assert page.text.count("no finite value") >= 5


def test_a_masked_model_is_reported_by_its_masked_loss(make_run, losses):
    page = report(make_run(losses, kind="masked"), kind="masked", teacher="bert-base-uncased")
    assert "Its masked loss is 3.330 nats, compared with the teacher's 3.200 nats" in page.text
    assert "Perplexity per word" not in page.text


def test_several_seeds_are_all_listed_with_their_median(tmp_path):
    run = RunFolder.at(tmp_path)
    seed_runs = [run.for_seed(seed) for seed in (7, 8, 9)]
    for seed, seed_run, student in zip((7, 8, 9), seed_runs, (3.31, 3.33, 3.38), strict=True):
        write_results(seed_run, {"teacher": 3.2, "student": student, "control": 3.36}, seed=seed)
    write_report(make_recipe(seed="[7, 8, 9]"), run, seed_runs)
    page = Page(run.report.read_text(encoding="utf-8"))
    for shown in (
        "Median of 3 seeds (7, 8, 9)",
        "Seed 7 3.200 nats 3.310 nats 3.360 nats \N{MINUS SIGN}0.050 nats",
        "Seed 8 3.200 nats 3.330 nats 3.360 nats \N{MINUS SIGN}0.030 nats",
        "Seed 9 3.200 nats 3.380 nats 3.360 nats +0.020 nats",
        "Median 3.200 nats 3.330 nats 3.310 to 3.380 nats 3.360 nats \N{MINUS SIGN}0.030 nats",
        "The student and its control do not differ significantly.",
        "the student has the lower loss in 2 of 3 seeds",
    ):
        assert shown in page.text
    assert "spread between seeds is unknown" not in page.text
    assert all((seed_run.student / "README.md").is_file() for seed_run in seed_runs)


def test_every_chart_has_a_title_a_description_and_identifiers_of_its_own(make_run, losses):
    page = report(make_run(losses))
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    identifiers = [a["id"] for _, a in page.elements if "id" in a]
    assert len(charts) >= 8
    assert len(identifiers) == len(set(identifiers))
    for chart in charts:
        assert set((chart["aria-labelledby"] or "").split()) <= set(identifiers)


def test_page_states_protocol_machine_commit_seed_and_command(make_run, losses):
    run = make_run(losses)
    page = report(run)
    for shown in ("AMD EPYC", "8.0 GB", "abc123", "2.13.0", "Every token of the validation split"):
        assert shown in page.text
    assert f"stillhouse run '{run.path}/recipe.yaml' --run-dir '{run.path}'" in page.text
    assert "layer_map: - 0 - 2 - 5" in page.text


def test_a_run_without_metrics_has_a_report_without_curves(make_run, losses):
    run = make_run(losses)
    run.metrics.unlink()
    assert "There is no metrics.jsonl in this run" in report(run).text


@pytest.mark.e2e
def test_a_long_run_is_drawn_with_few_points(make_run, losses):
    run = make_run(losses)
    run.metrics.write_text(make_metrics(["student", "control"], num_steps=20_000))
    report(run)
    assert run.report.stat().st_size < 1_000_000


def test_the_report_is_committed_with_its_sources(make_run, losses):
    run = make_run(losses)
    report(run)
    verify(run.report)
    manifest = read_manifest(run.report)
    assert manifest is not None
    assert manifest.inputs.stage == "report"
    assert list(manifest.inputs.sources) == ["evaluation seed 0"]


def test_missing_evaluation_is_an_error(tmp_path):
    run = RunFolder.at(tmp_path)
    with pytest.raises(RunError, match=r"There is no .*evaluation.json yet.*evaluate first"):
        write_report(make_recipe(), run, [run])


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2, "models": {"teacher": {}}}'])
def test_damaged_evaluation_is_an_error(make_run, losses, content):
    run = make_run(losses)
    run.evaluation.write_text(content)
    with pytest.raises(RunError, match=r"evaluation.json"):
        write_report(make_recipe(), run, [run])


def test_evaluation_of_another_schema_is_an_error(make_run, losses):
    run = make_run(losses, schema=1)
    message = r"has schema 1; .* needs schema 2.*Move it away, then run `stillhouse evaluate`"
    with pytest.raises(RunError, match=message):
        write_report(make_recipe(), run, [run])
