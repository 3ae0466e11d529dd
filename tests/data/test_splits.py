"""The held-out split: a document's side follows from its id."""

import pytest

from stillhouse.data.documents import is_validation
from stillhouse.data.sources.sample import sample_files

IDS = [f"folder/{number}.txt" for number in range(20_000)]


@pytest.mark.parametrize("fraction", [0.005, 0.1, 0.5])
def test_the_validation_split_has_about_its_fraction(fraction):
    """The hash is uniform, so the share is met within four standard deviations."""
    share = sum(is_validation(name, fraction) for name in IDS) / len(IDS)
    assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / len(IDS)) ** 0.5


def test_a_larger_split_contains_the_smaller():
    """What was held out once stays held out when more is held out."""
    small = {name for name in IDS if is_validation(name, 0.01)}
    large = {name for name in IDS if is_validation(name, 0.05)}
    assert small < large


def test_the_split_is_the_same_on_every_machine():
    """Known sides, so that a change of the hash cannot go unseen: it would leak text."""
    assert [name for name in IDS[:200] if is_validation(name, 0.02)] == KNOWN


def test_two_python_installations_agree(tmp_path):
    """A module that two Pythons carry is on the same side in both, whatever else they carry."""
    sides = []
    for version, modules in (
        ("3.11", ["a.py", "asynchat.py", "json/b.py"]),
        ("3.14", ["a.py", "json/b.py"]),
    ):
        library = tmp_path / f"python{version}"
        for name in modules:
            (library / name).parent.mkdir(parents=True, exist_ok=True)
            (library / name).write_text(f"# Python {version}")
        sides.append({name: is_validation(name, 0.5) for name, _ in sample_files(library)})
    older, newer = sides
    assert newer == {name: older[name] for name in newer}


KNOWN = ["folder/61.txt", "folder/69.txt", "folder/103.txt", "folder/153.txt"]
