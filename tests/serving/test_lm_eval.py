"""lm-evaluation-harness as a client: what it finds over HTTP is what it finds in this process."""

import json
import os
import subprocess
import sys

import pytest
from tests.evaluation.test_harness import PASSAGES, TASK

from stillhouse.models.hub import resolve_folder

pytestmark = pytest.mark.e2e


def test_lm_eval_scores_over_http_equal_local_scores(server, tmp_path):
    """Log-likelihoods of last words: the same perplexity, and the same share of top choices."""
    data, tasks = tmp_path / "passages.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    tasks.mkdir()
    (tasks / "last_word.yaml").write_text(TASK.replace("DATA", str(data)))
    folder = resolve_folder("sample", offline=True)
    served = {
        "model": "sample",
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": str(folder),
        "tokenizer_backend": "huggingface",
        "tokenized_requests": "True",
        "max_length": "512",
        "num_concurrent": "1",
    }
    local = {"pretrained": str(folder), "dtype": "float32"}
    found = {}
    for name, arguments in (("local-completions", served), ("hf", local)):
        output = tmp_path / name
        command = [
            os.path.join(os.path.dirname(sys.executable), "lm_eval"),
            "run",
            "--model", name,
            "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()),
            "--tasks", "last_word_here",
            "--include_path", str(tasks),
            "--batch_size", "2",
            "--output_path", str(output),
        ]  # fmt: skip
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_DATASETS_OFFLINE": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-3_000:]
        [written] = output.rglob("results_*.json")
        found[name] = json.loads(written.read_text())["results"]["last_word_here"]
    assert found["local-completions"]["acc,none"] == found["hf"]["acc,none"]
    assert found["local-completions"]["perplexity,none"] == pytest.approx(
        found["hf"]["perplexity,none"], rel=1e-4
    )
