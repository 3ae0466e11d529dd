"""The power of a stage: from counters, from the recipe, or unknown."""

import json
import threading
import time

import pytest

from stillhouse.energy.settings import EnergyRecipe
from stillhouse.runs import power
from stillhouse.runs.manifest import Inputs, commit_json, read_manifest
from stillhouse.runs.power import Counters, Meter, begin_stage, current_power, metered


class Rapl:
    """A CPU's counters, as Linux has them in /sys/class/powercap."""

    def __init__(self, folder, microjoules=10**9, most=10**12):
        self.folder = folder / "intel-rapl"
        self.package = self.folder / "intel-rapl:0"
        self.package.mkdir(parents=True)
        (self.package / "name").write_text("package-0\n")
        (self.package / "max_energy_range_uj").write_text(f"{most}\n")
        self.at = microjoules
        self.most = most
        self.add(0)

    def add(self, joules):
        self.at = (self.at + int(joules * 10**6)) % self.most
        (self.package / "energy_uj").write_text(f"{self.at}\n")

    def vanish(self):
        (self.package / "energy_uj").unlink()


@pytest.fixture
def rapl(tmp_path):
    return Rapl(tmp_path)


def meter(rapl, said=None, **recipe):
    say = (said if said is not None else []).append
    return Meter(EnergyRecipe(**recipe), Counters(rapl=rapl.folder), say)


def test_a_counter_gives_the_mean_power_of_a_stage(rapl):
    """What was spent before it does not count; nor does energy.watts."""
    found = meter(rapl, watts=1.0)
    rapl.add(1000)
    began = time.monotonic()
    found.begin()
    time.sleep(0.05)
    rapl.add(5)
    own = found.power()
    seconds = time.monotonic() - began
    assert (own.kind, own.source) == ("measured", "RAPL counters of the CPU")
    assert own.watts is not None
    assert 5 / seconds <= own.watts < 5 / 0.05 + 1e-6


def test_a_counter_that_starts_again_counts_on(tmp_path):
    """It is read before it can have started again twice."""
    rapl = Rapl(tmp_path, microjoules=99 * 10**6, most=100 * 10**6)
    counters = Counters(rapl=rapl.folder)
    for _ in range(3):
        rapl.add(60)
        counters.joules()
    assert counters.joules() == pytest.approx(180, rel=1e-6)


def test_a_counter_that_vanishes_is_said_once(rapl, monkeypatch):
    """Its stage and later ones are estimated where the recipe gives watts, else unknown."""
    monkeypatch.setattr(power, "SHORT_SECONDS", 0.0)
    for recipe, kind in (({"watts": 90.0}, "estimated"), ({}, "unknown")):
        said: list[str] = []
        found = meter(rapl, said, **recipe)
        rapl.add(5)
        rapl.vanish()
        assert [found.power().kind for _ in range(2)] == [kind] * 2
        found.begin()
        assert found.power().kind == kind
        assert len(said) == 1
        assert "RAPL counters of the CPU can no longer be read" in said[0]
        rapl.add(0)
    assert found.power().watts is None
    assert "could not be read to the end" in found.power().source


def test_without_a_counter_the_recipe_gives_the_power(tmp_path):
    """Times the number of devices; without it the power is unknown, not 0."""
    nothing = Counters(rapl=tmp_path / "none")
    found = Meter(EnergyRecipe(watts=300.0), nothing, print, devices=8).power()
    assert (found.kind, found.watts, found.devices) == ("estimated", 2400.0, 8)
    found = Meter(EnergyRecipe(), nothing, print).power()
    assert (found.kind, found.watts) == ("unknown", None)
    assert "no energy.watts in the recipe" in found.source


def test_manifests_have_the_power_of_their_stage(tmp_path):
    """And joules for their own seconds; outside of a run neither."""
    recipe = EnergyRecipe(watts=50.0)
    with metered(Meter(recipe, None, print)):
        begin_stage()
        commit_json(tmp_path / "made.json", {}, Inputs("stage", {}, {}), seconds=4.0)
    found = read_manifest(tmp_path / "made.json")
    assert found is not None
    assert found.power is not None
    assert (found.power["kind"], found.power["watts"], found.joules) == ("estimated", 50.0, 200.0)
    assert current_power() is None
    commit_json(tmp_path / "other.json", {}, Inputs("stage", {}, {}), seconds=4.0)
    other = read_manifest(tmp_path / "other.json")
    assert other is not None
    assert (other.power, other.joules) == (None, None)


def test_manifests_of_earlier_versions_are_read(tmp_path):
    """Without power, and with a digest that was made without it."""
    path = tmp_path / "old.json"
    commit_json(path, {}, Inputs("stage", {}, {}))
    manifest = tmp_path / "old.manifest.json"
    data = json.loads(manifest.read_text())
    del data["power"], data["digest"]
    from stillhouse.runs.manifest import fingerprint

    manifest.write_text(json.dumps(data | {"digest": fingerprint(data)}))
    with metered(Meter(EnergyRecipe(watts=50.0), None, print)):  # of another stage
        found = read_manifest(path)
    assert found is not None
    assert found.power is None


def test_counters_are_read_while_a_stage_runs(rapl, monkeypatch):
    """In a thread that ends with the run."""
    monkeypatch.setattr(power, "READ_EVERY_SECONDS", 0.01)
    found = meter(rapl)
    reads = []
    monkeypatch.setattr(found, "_read", lambda: reads.append(1))
    before = threading.active_count()
    with metered(found):
        time.sleep(0.2)
    assert len(reads) >= 3
    assert threading.active_count() == before
