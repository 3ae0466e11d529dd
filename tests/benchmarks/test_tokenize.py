"""The tokenizing benchmark: nothing is timed that is not equal, and every raw number is kept."""

import json
import sys

import pytest

from benchmarks import tokenize


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.txt").write_text(f"def f{number}(x):\n    return x\n" * 20)
    return folder


def benchmark(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tokenize", *map(str, arguments)])
    return tokenize.main()


@pytest.mark.e2e
def test_both_engines_are_timed_in_the_same_rounds(monkeypatch, tmp_path, texts):
    """As many seconds of one as of the other, of the encoders and of the whole stage."""
    output = tmp_path / "result.json"
    assert benchmark(monkeypatch, "--text", texts, "--repeats", 2, "--output", output) == 0
    found = json.loads(output.read_text())
    result = found["result"]
    assert result["size_bytes"] == sum(path.stat().st_size for path in texts.iterdir())
    for what in ("encoding", "prepare"):
        assert {engine: len(seconds) for engine, seconds in result[what].items()} == {
            "tokenizers": 2,
            "gigatoken": 2,
        }
        theirs, ours = result[what]["tokenizers"], result[what]["gigatoken"]
        ratios = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
        assert result["times_tokenizers"][what] == pytest.approx(ratios)
        assert result["median_times_tokenizers"][what] == pytest.approx(sum(ratios) / 2)
    assert {"command", "commit", "machine", "versions", "engines", "load_average"} <= set(found)


def test_without_the_fast_engine_nothing_is_timed(monkeypatch, capsys, texts):
    """The exit code says so, and the message why."""
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert benchmark(monkeypatch, "--text", texts) == 1
    assert "gigatoken is not installed" in capsys.readouterr().out.replace("\n", " ")
