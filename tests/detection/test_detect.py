"""The commands detect and fit-detector, on the packaged model and real text."""

import itertools
import json
import shutil
import sys

import pytest

from stillhouse.__main__ import _run
from stillhouse.data.sources.sample import sample_documents
from stillhouse.inference.generation import Generation
from stillhouse.inference.load import load
from stillhouse.models.hub import resolve_folder

WORDS = 45
LENGTH = 40


def call(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["stillhouse", *map(str, arguments)])
    code = _run()
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def texts():
    """Human texts (this machine's Python library, which the packaged model learned from) and what
    the model itself writes at a low temperature."""
    documents = [text.split() for _, text in itertools.islice(sample_documents(), 250)]
    human = [" ".join(words[30 : 30 + WORDS]) for words in documents if len(words) > 30 + WORDS]
    model = load("sample", offline=True)
    prompts = [model.prompt_ids(" ".join(words[:12])) for words in documents[:40]]
    written = model.continue_all(prompts, Generation(max_new_tokens=90, temperature=0.4, seed=1))
    machine = [text for (text,) in written if len(model.encode(text)) >= LENGTH]
    return human[:150], machine


def write_lines(path, texts):
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))


@pytest.fixture(scope="module")
def detector(texts, tmp_path_factory):
    """Fitted by the command on the first human and machine texts."""
    folder = tmp_path_factory.mktemp("detector")
    human, machine = texts
    write_lines(folder / "human.jsonl", human[:130])
    write_lines(folder / "machine.jsonl", machine[:24])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [
            "stillhouse", "fit-detector", "sample", "--human", f"{folder / 'human.jsonl'}",
            "--machine", f"{folder / 'machine.jsonl'}",
            "--lengths", f"{LENGTH}", "--output", f"{folder / 'detector.json'}",
        ])  # fmt: skip
        assert _run() == 0
    return folder / "detector.json"


@pytest.mark.e2e
def test_texts_of_the_packaged_model_are_told_from_human_text(
    capsys, monkeypatch, texts, detector, tmp_path
):
    """Of texts that were not fitted: most of those at a low temperature, and hardly a human one."""
    human, machine = texts
    files = []
    for kind, some in (("human", human[130:]), ("machine", machine[24:])):
        for number, text in enumerate(some):
            files.append(tmp_path / f"{kind}-{number}.txt")
            files[-1].write_text(text)
    code, out, _ = call(capsys, monkeypatch, "detect", *files, "--detector", detector, "--json")
    assert code == 0
    verdicts = {"human": [], "machine": []}
    for file, each in zip(files, json.loads(out), strict=True):
        assert each["file"] == str(file)
        verdicts[file.name.partition("-")[0]].append(each["verdict"])
    assert len(verdicts["machine"]) >= 8
    told = [verdicts[kind].count("machine") / len(verdicts[kind]) for kind in verdicts]
    assert told[0] <= 0.15
    assert told[1] >= 0.6


@pytest.mark.e2e
def test_what_it_cannot_tell_is_said_with_the_reason(capsys, monkeypatch, detector, tmp_path):
    """A short text, another language; and a word on what the verdict is not."""
    short, german = tmp_path / "short.txt", tmp_path / "german.txt"
    short.write_text("The list is empty.")
    german.write_text("Die Katze lag auf der Matte, und der Hund schlief vor der Haustür. " * 5)
    code, out, _ = call(capsys, monkeypatch, "detect", short, german, "--detector", detector)
    page = " ".join(out.split())
    assert code == 0
    assert page.count("cannot tell: ") == 2
    assert f"the shortest fitted texts have {LENGTH}" in page
    assert "its language seems to be de, and the detector was fitted on en" in page
    assert "Not evidence against a person." in page


@pytest.mark.e2e
def test_another_scoring_model_cannot_tell(capsys, monkeypatch, detector, texts, tmp_path):
    """The weights decide, not the name: a copy of the model elsewhere is the same model."""
    text = tmp_path / "text.txt"
    text.write_text(texts[0][-1])
    folder = tmp_path / "copy"
    shutil.copytree(resolve_folder("sample", offline=True), folder)
    arguments = ("detect", text, "--detector", detector, "--model", folder, "--json")
    _, out, _ = call(capsys, monkeypatch, *arguments)
    assert json.loads(out)[0]["verdict"] in ("machine", "not machine")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    code, out, _ = call(capsys, monkeypatch, *arguments)
    (found,) = json.loads(out)
    assert (code, found["verdict"], found["probability"]) == (0, "cannot tell", None)
    assert "another scoring model than the fitted one (sample)" in found["reason"]


def detector_file(tmp_path):
    """A valid detector; the model is not loaded."""
    fit = {
        **{name: [1.0] * 8 for name in ("mean", "scale", "coefficients")},
        "tokens": 50,
        "intercept": 0,
        "threshold": 1,
        "num_human": 99,
        "num_machine": 20,
    }
    content = {
        "model": "sample",
        "model_sha256": "0",
        "language": "en",
        "fits": [fit],
        "common_words": ["the"],
        "fewest_common": 0.1,
        "protocol": {},
        "sources": {"human": [], "machine": []},
    }
    file = tmp_path / "detector.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no text file"),
        (b"", "holds no words"),
        (b" \n\t ", "holds no words"),
        (b"\0\1\2", "holds a NUL character"),
        (b"%PDF-1.7", "is a PDF file"),
    ],
)
def test_text_that_cannot_be_judged_is_one_message(capsys, monkeypatch, tmp_path, content, words):
    """Before the model is loaded."""
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    file = detector_file(tmp_path)
    code, out, err = call(capsys, monkeypatch, "detect", text, "--detector", file)
    assert (code, out) == (3, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_damaged_detector_is_one_message(capsys, monkeypatch, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A text.")
    file = detector_file(tmp_path)
    file.write_text(file.read_text().replace('"tokens": 50', '"tokens": "many"'))
    code, out, err = call(capsys, monkeypatch, "detect", text, "--detector", file)
    assert (code, out) == (3, "")
    assert "is not a detector of this version" in err


def test_too_few_texts_to_fit_are_one_message(capsys, monkeypatch, tmp_path):
    """Before the model is loaded: the name of the model is not even looked up."""
    write_lines(tmp_path / "few.jsonl", ["One text.", "Another one."])
    output = tmp_path / "detector.json"
    code, out, err = call(
        capsys, monkeypatch, "fit-detector", "no/model", "--human", tmp_path / "few.jsonl",
        "--machine", tmp_path / "few.jsonl", "--output", output,
    )  # fmt: skip
    assert (code, out) == (3, "")
    assert "2 human texts have" in err
    assert "at least 99 are needed" in err
    assert not output.exists()
