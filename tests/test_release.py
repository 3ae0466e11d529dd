"""A release: the version of a tag, wheel and sdist, what they do in environments that hold nothing
else, and every extra alone. Needs a package registry."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
from tests.evaluation.test_harness import PASSAGES, TASK
from tests.task_models import make_task_folder

from stillhouse.extras import EXTRAS, install_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
SHORT = tuple(
    part
    for setting in (
        "distillation.max_tokens=4096",
        "corpus.validation_fraction=0.002",
        "evaluation.speed=false",
    )
    for part in ("--set", setting)
)
SECONDS = 300  # until a server answers


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder, without the checkout on its path."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    own["HF_HUB_OFFLINE"] = "1"
    if links := own.get("PIP_FIND_LINKS"):
        own["UV_FIND_LINKS"] = links  # where this machine keeps large wheels
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=own, capture_output=True, text=True, timeout=1_800
    )


def done(*command: str | Path, folder: Path) -> str:
    """What a command prints that must succeed."""
    result = run(*command, folder=folder)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2_000:]}{result.stderr[-4_000:]}"
    return result.stdout


@dataclass(frozen=True)
class Built:
    """A clone at a tag, and what was built from it."""

    clone: Path
    wheel: Path
    sdist: Path


def build(clone: Path, output: Path) -> Built:
    done(UV, "build", "--out-dir", output, folder=clone)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return Built(clone, wheel, sdist)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """The committed sources as version 9.8.7."""
    clone = tmp_path_factory.mktemp("clone") / "stillhouse"
    done("git", "clone", "--quiet", ROOT, clone, folder=ROOT)
    done("git", "tag", "v9.8.7", folder=clone)
    return build(clone, tmp_path_factory.mktemp("dist"))


@dataclass(frozen=True)
class Environment:
    """A Python environment."""

    folder: Path

    @property
    def stillhouse(self) -> Path:
        return self.folder / "bin" / "stillhouse"


@pytest.fixture(scope="module")
def install(built, tmp_path_factory) -> Callable[..., Environment]:
    """install(extra): a new environment with the wheel and this extra alone."""

    def make(extra: str = "") -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        done(UV, "venv", "--quiet", "--python", sys.executable, "--clear", folder, folder=folder)
        into = (UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python")
        named = f"{built.wheel}[{extra}]" if extra and not EXTRAS[extra].command else built.wheel
        done(*into, *CONSTRAINTS, named, folder=folder)
        if extra and (command := EXTRAS[extra].command):
            done(*into, *command.split()[2:], folder=folder)
        return Environment(folder)

    return make


@pytest.fixture(scope="module")
def plain(install) -> Environment:
    """The wheel without extras."""
    return install()


def test_the_version_is_that_of_the_tag(built, tmp_path):
    assert built.wheel.name == "stillhouse-9.8.7-py3-none-any.whl"
    assert built.sdist.name == "stillhouse-9.8.7.tar.gz"
    clone = tmp_path / "later"
    done("git", "clone", "--quiet", built.clone, clone, folder=tmp_path)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done("git", *identity, "commit", "--quiet", "--allow-empty", "-m", "x", folder=clone)
    assert "-9.8.8.dev1+g" in build(clone, tmp_path / "dist").wheel.name
    shutil.rmtree(clone / ".git")
    assert "-0.0.0-" in build(clone, tmp_path / "without").wheel.name


def test_the_wheel_holds_the_package_and_the_sdist_builds_it(built, tmp_path):
    """Every file of src/stillhouse that git knows, and no other; the same from the sdist."""
    names = set(ZipFile(built.wheel).namelist())
    listed = done("git", "ls-files", "src/stillhouse", folder=built.clone).splitlines()
    sources = {name.removeprefix("src/") for name in listed}
    assert {name for name in names if ".dist-info/" not in name} == sources
    done("tar", "xf", built.sdist, folder=tmp_path)
    (unpacked,) = tmp_path.iterdir()
    again = build(unpacked, tmp_path / "dist")
    assert set(ZipFile(again.wheel).namelist()) == names
    assert {"LICENSE", "CITATION.cff", "SECURITY.md", "CHANGELOG.md"} <= set(os.listdir(unpacked))


def table_of(printed: str) -> list[str]:
    return [name for name in ("teacher", "student", "control") if name in printed]


def test_pip_installs_the_wheel_and_quickstart_runs(built, tmp_path):
    """As the first page says, in an environment that pip made."""
    done(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    pip = tmp_path / "venv" / "bin" / "pip"
    done(pip, "install", "--quiet", *CONSTRAINTS, built.wheel, folder=tmp_path)
    command = Environment(tmp_path / "venv").stillhouse
    assert done(command, "--version", folder=tmp_path) == "9.8.7\n"
    assert table_of(done(command, "quickstart", *SHORT, folder=tmp_path))
    student = tmp_path / "runs" / "quickstart" / "student"
    assert "9.8.7" in (student / "README.md").read_text()
    done(command, "generate", student, "--prompt", "def ", "--seed", "1", folder=tmp_path)
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()


def test_uvx_and_pipx_run_quickstart_without_an_installation(built, tmp_path):
    uvx = (UV.with_name("uvx"), "--quiet", "--python", sys.executable)
    command = (*uvx, *CONSTRAINTS, "--from", built.wheel, "stillhouse", "quickstart")
    assert table_of(done(*command, *SHORT, "--run-dir", "uvx", folder=tmp_path))
    pipx = (*uvx, "pipx", "run", "--spec", built.wheel, "--pip-args", " ".join(CONSTRAINTS))
    command = (*pipx, "stillhouse", "quickstart")
    assert table_of(done(*command, *SHORT, "--run-dir", "pipx", folder=tmp_path))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """What the commands of EXTRA_COMMANDS read."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "data.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in PASSAGES))
    (folder / "tasks").mkdir()
    definition = TASK.replace("DATA", str(folder / "data.jsonl"))
    (folder / "tasks" / "last_word.yaml").write_text(definition)
    labels = {"id2label": {0: "O", 1: "B-LOC", 2: "I-LOC"}}
    make_task_folder(folder / "tagger", "bert", "TokenClassification", **labels)
    (folder / "page.html").write_text(
        "<article>" + f"<p>{' '.join(PASSAGES)}</p>" * 3 + "</article>"
    )
    recipe = {"teacher": "sample", "corpus": {"source": "page.html"}, "cleaning": {"main_text": {}}}
    (folder / "pages.yaml").write_text(json.dumps(recipe | {"tokens": {"sequence_length": 128}}))
    (folder / "words.conll").write_text("The O\nsea B-LOC\n\nThe O\nhouse O\n\n")
    ours = (sys.executable, "-m", "stillhouse")
    done(*ours, "export", "sample", "gguf", "--to", "gguf", folder=folder)
    (found,) = (folder / "gguf").glob("*.gguf")
    found.rename(folder / "sample.gguf")
    return folder


def with_sink(name: str) -> list[str]:
    line = f"run quickstart --until distill --run-dir {name} --set metrics=[{name}]"
    return [f"{line} --set distillation.control=none {' '.join(SHORT)}"]


# Of each extra, what works with it and is refused without.
EXTRA_COMMANDS: dict[str, list[str]] = {
    "energy": ["check quickstart --set energy.country=FRA"],
    "export": [
        f"export {model} {format}-folder --to {format}"
        for model, format in (("sample", "gguf"), ("tagger", "onnx"), ("sample", "ctranslate2"))
    ],
    "hub": ["check quickstart --set corpus.source=hf://nobody/nothing"],
    "llama-cpp": ["generate sample.gguf --engine llama.cpp --prompt a --max-new-tokens 2"],
    "lm-eval": ["score sample --lm-eval last_word_here --lm-eval-folder tasks --offline"],
    "mlflow": with_sink("mlflow"),
    "samples": ["features minilm --text a --output features.npy"],
    "smollm2": ["check quickstart --set teacher=smollm2"],
    "tasks": ["score tagger --data words.conll"],
    "text": ["clean pages.yaml --run-dir cleaned"],
    "trackio": with_sink("trackio"),
    "wandb": with_sink("wandb"),
}
SERVERS = {"ray": ["--replicas", "1"], "serve": []}
EXIT_CODES = {"smollm2": 4}  # its GGUF file needs llama-cpp as well


@pytest.mark.parametrize("extra", EXTRA_COMMANDS)
def test_an_extra_alone_is_enough(extra, install, plain, files):
    """Without it each command names the line that installs it; with it alone the command runs."""
    commands = [line.split() for line in EXTRA_COMMANDS[extra]]
    for command in commands:
        refused = run(plain.stillhouse, *command, folder=files)
        assert refused.returncode in (2, 4), refused.stderr
        assert install_command(extra) in " ".join(refused.stderr.split())
    own = install(extra)
    for command in commands:
        found = run(own.stillhouse, *command, folder=files)
        assert found.returncode == EXIT_CODES.get(extra, 0), found.stderr
        assert install_command(extra) not in " ".join(found.stderr.split())


def test_the_extra_fast_alone_is_used(install, plain, files):
    for environment, engine in ((plain, "tokenizers"), (install("fast"), "gigatoken")):
        run_dir = f"run-{engine}"
        done(environment.stillhouse, "prepare", "quickstart", "--run-dir", run_dir, folder=files)
        assert f'"{engine} ' in (files / run_dir / "tokens" / "manifest.json").read_text()


@pytest.mark.parametrize("extra", SERVERS)
def test_a_server_needs_its_extra_alone(extra, install, plain, files):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = ("serve", "sample", "--port", str(port), *SERVERS[extra])
    refused = run(plain.stillhouse, *line, folder=files)
    assert refused.returncode == 2
    assert install_command(extra) in " ".join(refused.stderr.split())
    with (
        serving(install(extra), line, files),
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer,
    ):
        assert json.load(answer)["data"][0]["id"] == "sample"


@contextmanager
def serving(environment: Environment, line: Sequence[str], folder: Path) -> Iterator[None]:
    """A server that answers while this context lasts."""
    port, log = line[line.index("--port") + 1], folder / f"{environment.folder.name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(environment.stillhouse), *line], cwd=folder, stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
            except (urllib.error.URLError, ConnectionError):
                ended = process.poll() is not None or time.monotonic() > until
                assert not ended, log.read_text()[-4_000:]
                time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=120)


def test_every_extra_is_tried():
    assert {*EXTRA_COMMANDS, *SERVERS, "fast"} == set(EXTRAS)
