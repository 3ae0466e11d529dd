"""The run folder: what has its final name is complete, unaltered, and of this run alone."""

import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stillhouse.errors import ResourceError, RunError
from stillhouse.runs.atomic import explained_os_errors, write_atomic
from stillhouse.runs.manifest import (
    MANIFEST,
    Inputs,
    changed_settings,
    commit_file,
    commit_folder,
    fingerprint,
    is_up_to_date,
    manifest_path,
    read_manifest,
    verify,
)
from stillhouse.runs.paths import RunFolder, locked

INPUTS = Inputs(
    "distill",
    {"distillation": {"temperature": 2.0, "losses": {"jsd": {"weight": 1}}}, "layers": [0, 2]},
    {"teacher": "abc", "tokens": "def"},
    seed=0,
)


@pytest.fixture
def output(tmp_path) -> Path:
    """A committed folder with a file, and one in a folder below."""
    write(tmp_path / "student")
    return tmp_path / "student"


def write(target: Path, text: str = "weights", inputs: Inputs = INPUTS, **options) -> None:
    with commit_folder(target, inputs, {"steps": 7}, **options) as folder:
        (folder / "model.safetensors").write_text(text)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.txt").write_text("a b c")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_commit_appears_only_when_it_is_complete(tmp_path):
    """While the body writes, nothing has the final name; afterwards all is there, and no rest."""
    target = tmp_path / "run" / "student"
    with commit_folder(target, INPUTS) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert names_in(target) == {"a", MANIFEST}
    assert names_in(target.parent) == {"student"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_commit_that_fails_leaves_nothing(error, tmp_path):
    """An error or a signal in the middle: no folder, no temporary folder."""

    def fail() -> None:
        with commit_folder(tmp_path / "student", INPUTS) as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == set()


def test_a_commit_that_fails_keeps_what_was_there(output):
    """The old output stays, whole, under its name, even when it was to be overwritten."""

    def fail() -> None:
        with commit_folder(output, INPUTS, overwrite=True) as folder:
            (folder / "half").write_text("half")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    verify(output)
    assert names_in(output.parent) == {"student"}


def test_what_a_killed_process_left_is_removed(tmp_path):
    """A temporary folder of a process that is no more does not stay for ever."""
    leftover = tmp_path / ".student.tmp-99999999"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    write(tmp_path / "student")
    assert names_in(tmp_path) == {"student"}


def test_the_manifest_says_what_the_output_was_made_from(output):
    """Inputs come back equal; every file is listed with its size; facts, versions, seconds."""
    manifest = read_manifest(output)
    assert manifest is not None
    assert manifest.inputs == INPUTS
    sizes = {name: facts["size_bytes"] for name, facts in manifest.files.items()}
    assert sizes == {"model.safetensors": 7, "tokenizer/vocab.txt": 5}
    assert manifest.facts == {"steps": 7}
    assert "python" in manifest.versions
    assert manifest.seconds >= 0


def test_facts_may_be_filled_by_the_body(tmp_path):
    """What is known only at the end still reaches the manifest."""
    facts = {}
    with commit_folder(tmp_path / "tokens", INPUTS, facts):
        facts["documents"] = 3
    manifest = read_manifest(tmp_path / "tokens")
    assert manifest is not None
    assert manifest.facts == {"documents": 3}


def test_an_intact_output_is_verified(output):
    """What was just committed has no damage."""
    verify(output)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/vocab.txt"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "does not match its SHA-256"),
        (lambda path: os.truncate(path, 2), "2 bytes, expected"),
        (lambda path: path.open("ab").write(b"x"), "bytes, expected"),
        (Path.unlink, "is missing"),
    ],
    ids=["flipped bit", "truncated", "grown", "deleted"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_damage_is_found(name, damage: Callable[[Path], object], message, output):
    """A bit, a byte less, a byte more, or a file less: the error names the file."""
    damage(output / name)
    with pytest.raises(RunError, match=f"{name}.*{message}") as caught:
        verify(output)
    assert caught.value.exit_code == 5


def test_an_output_that_was_never_finished_is_not_verified(tmp_path):
    """A folder without a manifest is no output."""
    (tmp_path / "student").mkdir()
    with pytest.raises(RunError, match="has not finished"):
        verify(tmp_path / "student")
    assert read_manifest(tmp_path / "student") is None
    assert not is_up_to_date(tmp_path / "student", INPUTS)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"inputs": {}}', "\udcff"])
def test_a_damaged_manifest_is_named(content, output):
    """Not JSON, or not a manifest: said so, with what to do."""
    (output / MANIFEST).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"manifest\.json is damaged.*Move"):
        read_manifest(output)


OUTSIDE = {"../model.safetensors": {"size_bytes": 1, "sha256": ""}}


def test_a_manifest_that_was_altered_is_damaged(output):
    """A bit flipped in a number that nothing else depends on is found too."""
    data = json.loads((output / MANIFEST).read_text())
    (output / MANIFEST).write_text(json.dumps({**data, "seconds": data["seconds"] + 1}))
    with pytest.raises(RunError, match="does not match its digest"):
        read_manifest(output)


@pytest.mark.parametrize(
    "files", [[], {"model.safetensors": {}}, {"model.safetensors": 3}, None, OUTSIDE]
)
def test_a_manifest_whose_list_of_files_makes_no_sense_is_named(files, output):
    """Valid JSON is not yet a manifest: its facts about the files are checked too."""
    data = json.loads((output / MANIFEST).read_text())
    del data["digest"]
    data = {**data, "files": files}
    (output / MANIFEST).write_text(json.dumps({**data, "digest": fingerprint(data)}))
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        verify(output)


def with_settings(**settings) -> Inputs:
    return replace(INPUTS, settings={**INPUTS.settings, **settings})


CHANGES = [
    (with_settings(layers=[0, 3]), ["layers: [0, 2] -> [0, 3]"]),
    (
        with_settings(distillation={"temperature": 1.0, "losses": {"jsd": {"weight": 1}}}),
        ["distillation.temperature: 2.0 -> 1.0"],
    ),
    (
        with_settings(
            distillation={"temperature": 2.0, "losses": {"jsd": {"weight": 1, "beta": 0.2}}}
        ),
        ["distillation.losses.jsd.beta: None -> 0.2"],
    ),
    (replace(INPUTS, sources={"teacher": "xyz", "tokens": "def"}), ["teacher changed"]),
    (replace(INPUTS, seed=1), ["seed: 0 -> 1"]),
    (replace(INPUTS, stage="teacher"), ["stage: distill -> teacher"]),
    (
        replace(with_settings(layers=[1]), seed=2),
        ["seed: 0 -> 2", "layers: [0, 2] -> [1]"],
    ),
]


@pytest.mark.parametrize(("inputs", "lines"), CHANGES)
def test_any_change_of_the_inputs_is_seen_and_said(inputs, lines, output):
    """An output of other inputs is out of date, and each difference is one readable line."""
    assert not is_up_to_date(output, inputs)
    assert sorted(changed_settings(output, inputs)) == sorted(lines)


def test_equal_inputs_are_up_to_date(output):
    """Whatever the order of keys, or a tuple where JSON has a list."""
    settings = dict(reversed(list(INPUTS.settings.items())))
    same = replace(INPUTS, settings={**settings, "layers": (0, 2)})
    assert is_up_to_date(output, INPUTS)
    assert is_up_to_date(output, same)
    assert changed_settings(output, INPUTS) == []
    assert changed_settings(output.with_name("nothing"), INPUTS) == []


def test_a_fingerprint_follows_inputs_and_content(tmp_path):
    """Later stages are redone when what they read has other content, or was made otherwise."""
    written = [("a", INPUTS, "one"), ("b", INPUTS, "one"), ("c", INPUTS, "two")]
    written.append(("d", replace(INPUTS, seed=1), "one"))
    prints = {}
    for name, inputs, text in written:
        write(tmp_path / name, text, inputs)
        manifest = read_manifest(tmp_path / name)
        assert manifest is not None
        prints[name] = manifest.fingerprint
    assert prints["a"] == prints["b"]
    assert len(set(prints.values())) == 3
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert re.fullmatch("[0-9a-f]{64}", prints["a"])


def test_an_old_output_is_kept_aside(output):
    """Twice replaced within a second, both older outputs are in replaced/, whole."""
    write(output, "second")
    write(output, "third")
    assert (output / "model.safetensors").read_text() == "third"
    kept = list((output.parent / "replaced").iterdir())
    assert {(path / "model.safetensors").read_text() for path in kept} == {"weights", "second"}
    for path in kept:
        assert path.name.startswith("student-")
        verify(path)


def test_an_old_output_goes_when_asked(output):
    """overwrite leaves the new output alone."""
    write(output, "second", overwrite=True)
    assert (output / "model.safetensors").read_text() == "second"
    replaced = output.parent / "replaced"
    assert not replaced.exists() or not list(replaced.iterdir())


def test_a_result_file_has_its_manifest_beside_it(tmp_path):
    """evaluation.json is committed, verified and kept up to date like a folder."""
    target = tmp_path / "evaluation.json"
    commit_file(target, b"{}", INPUTS, seconds=1.25)
    assert manifest_path(target) == tmp_path / "evaluation.manifest.json"
    assert is_up_to_date(target, INPUTS)
    verify(target)
    target.write_bytes(b"[]")
    with pytest.raises(RunError, match="SHA-256"):
        verify(target)
    commit_file(target, b"new", INPUTS)
    verify(target)
    assert names_in(tmp_path) == {"evaluation.json", "evaluation.manifest.json"}


def test_an_atomic_write_replaces_the_file_whole(tmp_path):
    """The new content or the old; nothing else is left in the folder."""
    path = tmp_path / "state.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError):
        write_atomic(path, None)  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == {"state.json"}


def hold(path: Path, held, release) -> None:
    with locked(RunFolder.at(path)):
        held.set()
        release.wait(250)


def test_a_run_in_use_is_refused(tmp_path):
    """Another process's run is left alone; once it has ended the run is free."""
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", held, release))
    other.start()
    try:
        assert held.wait(200)
        with (
            pytest.raises(RunError, match="in use by another"),
            locked(RunFolder.at(tmp_path / "run")),
        ):
            pass
    finally:
        release.set()
        other.join(200)
        other.close()
    with locked(RunFolder.at(tmp_path / "run")):
        pass


def test_seeds_share_what_does_not_depend_on_them(tmp_path):
    """Corpus, tokens, teacher and recipe exist once; each seed has its own results."""
    run = RunFolder.at(tmp_path)
    one, other = run.for_seed(1), run.for_seed(2)
    for name in ("recipe", "corpus", "tokens", "teacher"):
        assert getattr(one, name) == getattr(other, name) == getattr(run, name)
    own = (
        "student_init",
        "student",
        "control",
        "control_same_time",
        "metrics",
        "evaluation",
        "report",
    )
    paths = [getattr(folder, name) for folder in (run, one, other) for name in own]
    paths += [
        folder.checkpoints(model)
        for folder in (run, one, other)
        for model in ("student", "control")
    ]
    assert len(set(paths)) == len(paths)


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    from stillhouse.errors import ResourceError
    from stillhouse.runs.manifest import Inputs, commit_folder
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = {limit}
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    target = Path(sys.argv[1]) / "student"
    try:
        with commit_folder(target, Inputs("init", {{}}, {{}})) as folder:
            (folder / "weights").write_bytes(bytes(200_000))
    except ResourceError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
"""


def write_in_a_process(folder: Path, *, limit: int) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(FULL_DISK.format(limit=limit))
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=200
    )


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 64 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield disk if mounted else None
    if mounted:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)


def test_a_full_disk_is_said_so_and_leaves_nothing_half_written(small_disk, tmp_path):
    """Exit code 6 and a message; a real full disk where one can be mounted, else a file limit."""
    folder = small_disk or tmp_path / "limited"
    folder.mkdir(exist_ok=True)
    done = write_in_a_process(folder, limit=0 if small_disk else 64 * 1024)
    assert done.returncode == 6, done.stderr
    assert "The disk is full: writing" in done.stderr
    assert "Traceback" not in done.stderr
    assert names_in(folder) == set()


def test_a_file_over_the_limit_is_a_full_disk(tmp_path):
    """A quota on the size of files (ulimit -f) is explained the same way."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
    done = write_in_a_process(tmp_path, limit=64 * 1024)
    assert done.returncode == 6, done.stderr
    assert names_in(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_explained():
    """Even root cannot write below /proc: our error, with the path, not a traceback."""
    with (
        pytest.raises((RunError, ResourceError, FileNotFoundError)),
        explained_os_errors(Path("/proc/x")),
    ):
        Path("/proc/stillhouse").write_text("")


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [("EACCES", RunError, 5), ("EROFS", RunError, 5), ("EIO", ResourceError, 6)],
)
def test_write_errors_of_the_system_are_explained(number, kind, code, tmp_path):
    """No permission, a read-only disk, a failing disk: each has its kind and names the path."""
    import errno

    with (
        pytest.raises(kind, match=re.escape(str(tmp_path))) as caught,
        explained_os_errors(tmp_path),
    ):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
    assert caught.value.exit_code == code


def test_an_array_cut_short_by_a_full_disk_is_explained():
    """numpy's `tofile` does not give the error's number: /dev/full is always full."""
    with (
        pytest.raises(ResourceError, match=r"disk is full: writing model\.gguf failed .*0 written"),
        explained_os_errors("model.gguf"),
        open("/dev/full", "wb") as file,
    ):
        np.zeros(100_000).tofile(file)


def test_an_error_that_is_not_about_writing_is_left_alone(tmp_path):
    """A missing file is our bug or the user's text, not a full disk."""
    with pytest.raises(FileNotFoundError), explained_os_errors(tmp_path):
        (tmp_path / "nothing").read_text()
