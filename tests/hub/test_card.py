import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

import hf_fingerprint
from hf_fingerprint.errors import CheckpointError
from hf_fingerprint.hub.card import make_card
from tests.helpers.error_checks import refused


EXAMPLES = Path(hf_fingerprint.__file__).parents[1] / "model_cards"
BASE_CARD = """---
license: apache-2.0
language: en
tags:
- image-classification
- plants
datasets:
- org/plants
model-index:
- name: plants
  results:
  - task: {type: image-classification}
    dataset: {type: org/plants, name: plants}
    metrics: [{type: accuracy, value: 0.9}]
---
# Plants

What a photograph shows.

## Limits

```python
# not a heading
```
"""
TIMM = {"architecture": "tf_efficientnet_lite0", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 56, 56]}}
VIT = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
WEIGHTS = {"model.safetensors": "5d" * 32}
CONTENT, COMMITMENT = "c0" * 32, "ab" * 32


def folder_with(tmp_path, config, card=None) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    return tmp_path


def test_what_the_base_says_of_itself_is_kept_and_the_base_is_named(tmp_path):
    card = make_card(folder_with(tmp_path, VIT, BASE_CARD), "org/plants-7", WEIGHTS, CONTENT, "org/plants")

    said = ModelCard(str(card)).data.to_dict()
    assert said["license"] == "apache-2.0"
    assert said["tags"] == ["image-classification", "plants"]
    assert said["datasets"] == ["org/plants"]
    assert said["base_model"] == "org/plants"
    assert (said["library_name"], said["pipeline_tag"]) == ("transformers", "image-classification")
    assert "model-index" not in said
    assert "### Plants" in card.text
    assert "# not a heading" in card.text
    assert "What a photograph shows." in card.text


def test_a_base_that_is_a_variant_keeps_its_base_by_default(tmp_path):
    folder = folder_with(tmp_path, VIT, "---\nbase_model: google/vit\n---\n# A\n")

    assert make_card(folder, "org/a-7", WEIGHTS, CONTENT).data.base_model == "google/vit"
    assert make_card(folder, "org/a-7", WEIGHTS, CONTENT, "org/a").data.base_model == "org/a"


def test_names_of_files_and_bases_stay_within_their_line(tmp_path):
    folder = folder_with(tmp_path, TIMM)
    name = "a\x1b`|\n# Big\u202e.safetensors"

    card = make_card(folder, "org/x", {name: "0" * 64}, CONTENT, "org/b](http://evil.example)\n# Big\x1b[31m")

    assert f"| `a\\x1b'\\|\\n# Big\\u202e.safetensors` | `{'0' * 64}` |" in card.text.splitlines()
    assert "[org/b\\]\\(http://evil.example\\)\\n# Big\\x1b\\[31m]" in card.text.replace("\\\\", "\\")
    assert not set("\x1b\u202e") & set(str(card)) and "\n# Big" not in card.text


def test_the_fingerprint_is_named_only_if_disclosed(tmp_path):
    folder = folder_with(tmp_path, TIMM)

    silent = str(make_card(folder, "org/x", WEIGHTS, CONTENT))
    open_ = str(make_card(folder, "org/x", WEIGHTS, CONTENT, commitment=COMMITMENT))

    assert "ingerprint" not in silent.replace("hf-fingerprint hash", "")
    assert COMMITMENT in open_
    assert "## Fingerprint" in open_


@pytest.mark.parametrize("config", [TIMM, VIT], ids=["timm", "transformers"])
def test_the_card_says_how_to_load_the_copy_and_what_to_compare(tmp_path, config):
    card = str(make_card(folder_with(tmp_path, config), "org/x", WEIGHTS, CONTENT))

    assert ('create_model("hf-hub:org/x"' in card) is (config is TIMM)
    assert 'from_pretrained("org/x")' in card
    assert f"| `model.safetensors` | `{'5d' * 32}` |" in card
    assert CONTENT in card


def test_rendered_cards_pass_the_hubs_validation(tmp_path, hub):
    for number, card in enumerate((BASE_CARD, None)):
        made = make_card(folder_with(tmp_path, TIMM, card), f"org/x{number}", WEIGHTS, CONTENT, "org/x")
        HfApi().create_repo(f"org/x{number}", private=True)
        HfApi().upload_file(path_or_fileobj=str(made).encode(), path_in_repo="README.md", repo_id=f"org/x{number}")
    assert sum("validate-yaml" in call.path for call in hub.calls) == 2


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_a_base_card_that_cannot_be_read_is_one_sentence(tmp_path, card):
    folder = folder_with(tmp_path, VIT, card)

    assert "correct its front matter" in refused(make_card, folder, "org/x", WEIGHTS, CONTENT, error=CheckpointError)


def test_a_configuration_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{")

    said = refused(make_card, tmp_path, "org/x", WEIGHTS, CONTENT, error=CheckpointError)
    assert "config.json is not valid JSON" in said
    assert "org/x" in str(make_card(tmp_path, "org/x", WEIGHTS, CONTENT, readable_files=[]))


def test_a_card_that_does_not_go_along_is_not_quoted(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy token is this.\n")

    assert "token" not in str(make_card(tmp_path, "org/x", WEIGHTS, CONTENT, readable_files=["config.json"]))


@pytest.mark.parametrize("disclosed", [False, True])
def test_the_example_cards_are_what_is_rendered(tmp_path, disclosed):
    """Two cards to look at; made anew with `python tests/hub/test_card.py` where they should differ."""
    assert example(tmp_path, disclosed) == (EXAMPLES / example_name(disclosed)).read_text()


def example_name(disclosed: bool) -> str:
    return "example-disclosed.md" if disclosed else "example-silent.md"


def example(folder: Path, disclosed: bool) -> str:
    if disclosed:
        return str(
            make_card(folder_with(folder, TIMM, BASE_CARD), "org/plants-7", WEIGHTS, CONTENT, "org/plants", COMMITMENT)
        )
    return str(make_card(folder_with(folder, VIT), "org/vit-12", WEIGHTS, CONTENT, "org/vit"))


if __name__ == "__main__":
    import tempfile

    for disclosed in (False, True):
        (EXAMPLES / example_name(disclosed)).write_text(example(Path(tempfile.mkdtemp()), disclosed))
