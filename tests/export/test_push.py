"""A run's student on the hub: what goes there, by a real client and a server that answers as the
hub does."""

import base64
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from stillhouse.errors import OptionError, RunError
from stillhouse.export.push import check_name, files_of
from stillhouse.runs.manifest import Inputs, commit_folder
from stillhouse.runs.paths import RunFolder

RECIPE = "teacher: sample\ncorpus: {source: sample}\nseed: SEED\n"
MEASUREMENTS = {"evaluations": {"0": {"loss": 1.5}}}


@pytest.fixture
def run(tmp_path):
    """make(seeds): a finished run."""

    def make(seeds=(0,)):
        run = RunFolder.at(tmp_path / "run")
        for own in run.of_seeds(seeds):
            with commit_folder(own.student, Inputs("distill", {}, {})) as folder:
                (folder / "model.safetensors").write_bytes(bytes(2000))
                (folder / "config.json").write_text("{}")
            (own.student / "README.md").write_text(f"---\nlicense: mit\n---\n# {own.path.name}\n")
            (own.student / "measurements.json").write_text(json.dumps(MEASUREMENTS))
        text = RECIPE.replace("SEED", str(list(seeds) if len(seeds) > 1 else seeds[0]))
        run.recipe.write_text(text)
        return run

    return make


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that an upload needs; `status` is that of a commit."""

    status = 200
    repositories: list[dict]
    commits: list[list[dict]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        host = f"http://{self.headers['Host']}"
        answer: dict = {}
        if self.path == "/api/repos/create":
            self.repositories.append(json.loads(body))
            answer = {"url": f"{host}/me/still"}
        elif "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": name, **modes} for name in names]}
        elif "/commit/" in self.path:
            self.commits.append([json.loads(line) for line in body.splitlines()])
            answer = {"commitUrl": f"{host}/me/still/commit/1", "commitOid": "1", "success": True}
        self._answer(answer, self.status if "/commit/" in self.path else 200)

    def do_GET(self):
        self._answer({"sha": "0", "id": "me/still", "siblings": []})

    def _answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub():
    """make(status): the hub's handler class and its address."""
    servers = []

    def make(status=200):
        handler = type("Own", (Hub,), {"status": status, "repositories": [], "commits": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return handler, f"http://127.0.0.1:{server.server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def push(run, *arguments, endpoint="http://127.0.0.1:9", token="hf_test"):
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(run.path / "hf")}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "stillhouse", "push", str(run.path), "me/still", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.e2e
def test_a_student_goes_to_the_hub_in_one_commit(run, hub):
    """With its card, its manifest and its measurements; the repository is private."""
    handler, endpoint = hub()
    done = push(run(), endpoint=endpoint)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/still/commit/1")
    (repository,) = handler.repositories
    assert (repository["organization"], repository["name"]) == ("me", "still")
    assert repository["visibility"] == "private"
    (commit,) = handler.commits
    files = {each["value"]["path"]: base64.b64decode(each["value"]["content"])
             for each in commit if each["key"] == "file"}  # fmt: skip
    assert {*files} == {
        *("README.md", "config.json", "manifest.json", "measurements.json", "model.safetensors")
    }
    assert files["model.safetensors"] == bytes(2000)
    assert json.loads(files["measurements.json"]) == MEASUREMENTS


@pytest.mark.e2e
def test_a_dry_run_lists_the_files_of_a_seed_without_the_network(run):
    done = push(run((3, 4)), "--seed", "4", "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    for text in ("to me/still", "model.safetensors", "2.0 kB", "measurements.json"):
        assert text in done.stdout
    wrong = push(run((3, 4)), "--seed", "5", "--dry-run")
    assert wrong.returncode == 2
    assert "--seed is 5; the run has 3, 4." in wrong.stderr


def test_a_license_against_it_is_kept(run):
    """Nothing is uploaded under a license that forbids it."""
    own = run()
    (own.student / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n# run\n")
    with pytest.raises(RunError, match=r"states the license cc-by-nd-4\.0.*may not be published"):
        files_of(own)


@pytest.mark.e2e
def test_what_the_hub_refuses_is_one_message(run, hub):
    """No token, a token that may not write, a hub that does not answer."""
    own = run()
    cases = [
        (push(own, token=""), 7, "There is no token for the hub. Run `hf auth login`"),
        (push(own, endpoint=hub(403)[1]), 2, "does not let this token write to me/still (403)"),
        (push(own), 7, "The hub cannot be reached"),
    ]
    for done, code, message in cases:
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_run_half_done_is_not_uploaded(run):
    own = run()
    (own.student / "README.md").unlink()
    with pytest.raises(RunError, match="has no model card: the run is not finished"):
        files_of(own)
    (own.student / "model.safetensors").write_bytes(bytes(1999))
    with pytest.raises(RunError, match="is damaged: 1999 bytes, expected 2000"):
        files_of(own)
    with pytest.raises(RunError, match="the stage that writes it has not finished"):
        files_of(RunFolder.at(own.path / "none"))


@pytest.mark.parametrize("name", ["still", "a/b/c", "me/", "/still", "me/st ill", "me/" + "x" * 97])
def test_what_is_no_name_on_the_hub_is_refused(name):
    with pytest.raises(OptionError, match="is not a name on the hub"):
        check_name(name)
