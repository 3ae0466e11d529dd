"""The license of a model, where its card or its GGUF file states one."""

import gguf
import pytest

from stillhouse.models.license import License, license_of


def card(folder, front_matter):
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\n")
    return str(folder)


@pytest.mark.parametrize("model", ["sample", "minilm"])
def test_packaged_models_state_theirs(model):
    assert license_of(model) == License("apache-2.0")


def test_a_gguf_file_states_it_in_its_metadata(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("Llama3.2")
    writer.add_license_name("Llama 3.2 Community License")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert license_of(str(path)) == License("llama3.2", "Llama 3.2 Community License")


def test_a_license_of_its_own_has_a_name_and_an_address(tmp_path):
    stated = "license: other\nlicense_name: ours\nlicense_link: https://example.org/license"
    found = license_of(card(tmp_path, stated))
    assert found == License("other", "ours", "https://example.org/license")


@pytest.mark.parametrize("stated", ["tags: [a]", "license: [mit, apache-2.0]", "license: 3", "- a"])
def test_a_card_that_states_no_single_license(tmp_path, stated):
    assert license_of(card(tmp_path, stated)) is None


def test_what_is_not_here_has_no_known_license(tmp_path):
    assert license_of(str(tmp_path / "gone")) is None
    assert license_of("someone/never-fetched") is None
    assert license_of(str(tmp_path)) is None  # no card


@pytest.mark.parametrize(
    ("identifier", "is_permissive", "forbids"),
    [
        ("apache-2.0", True, False),
        ("cc-by-4.0", True, False),
        ("cc-by-sa-4.0", False, False),
        ("cc-by-nc-4.0", False, False),
        ("cc-by-nc-nd-4.0", False, True),
        ("cc-by-nd-4.0", False, True),
        ("llama3.2", False, False),
        ("gemma", False, False),
        ("unknown-to-us", False, False),
    ],
)
def test_what_may_be_made_from_it(identifier, is_permissive, forbids):
    stated = License(identifier)
    assert (stated.is_permissive, stated.forbids_derived_models) == (is_permissive, forbids)
