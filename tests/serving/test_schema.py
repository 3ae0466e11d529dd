"""The server's own description of itself, tried by schemathesis: what it allows is answered, what
it forbids is refused, and nothing that is sent makes the server fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NUMBER = os.environ.get("SCHEMATHESIS_EXAMPLES", "20")


@pytest.mark.timeout(1_000)
def test_schemathesis_finds_no_server_error(server, tmp_path):
    """Every path and method, with bodies that fit the schema and bodies that do not."""
    command = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"),
        "run",
        f"{server.url}/openapi.json",
        "--max-examples",
        NUMBER,
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance",
        "--seed",
        "1",
        "--request-timeout",
        "120",  # seconds on a busy machine; no check is about time
        "--generation-database",
        "none",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.serving.schema_hooks"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=900, env=environment
    )
    assert result.returncode == 0, result.stdout[-4_000:] + result.stderr[-1_000:]
