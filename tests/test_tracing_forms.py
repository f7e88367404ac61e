"""A copy is traced in every form in which a stolen classifier turns up: on disk, in an app, and on the Hub."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest

from hf_fingerprint import Outcome, trace
from hf_fingerprint.checkpoints import find_weight_sets
from tests.helpers.forms import FORMS, KINDS, RECIPIENT, kind_of, open_vault, trace_form
from tests.helpers.loopback_hub import LoopbackHub


pytestmark = pytest.mark.integration
MADE = [
    path
    for kind in KINDS
    for path in sorted((FORMS / kind / "made").glob("*"))
    if path.is_dir() or not re.fullmatch(r".*(\.bin|\.onnx[._]data|\.json)", path.name)
]
FEW_BITS = re.compile(
    r"(int|uint|nf|fp|q|lut|palette|palettized|bits?)_?[1-4](?!\d)|[_.-][1-4]_?bits?|w4", re.IGNORECASE
)
MIN_SHARE = 0.8  # of the copy's score; 8 bits keep 0.9 and more


@pytest.fixture(scope="module")
def vaults(tmp_path_factory):
    return {kind: open_vault(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def verbatim(vaults):
    """The score of each copy itself."""
    return {kind: trace_form(FORMS / kind / "copy", vaults[kind]).accused[0].score for kind in KINDS}


@pytest.mark.parametrize("form", MADE, ids=lambda path: f"{kind_of(path)}-{path.name}")
def test_the_copy_is_traced_in_each_form_and_no_innocent_is_accused(vaults, verbatim, form):
    kind = kind_of(form)

    result = trace_form(form, vaults[kind])

    assert {score.recipient for score in result.accused} == {RECIPIENT}, result.reason
    assert result.files_not_read == ()
    if not FEW_BITS.search(form.name):
        assert result.accused[0].score >= MIN_SHARE * verbatim[kind]
    for container in result.containers:
        assert container.tensors
        assert container.format in str(result)


def test_the_stolen_model_in_an_app_is_named(vaults, tmp_path):
    app, members = tmp_path / "app.apk", {}
    stolen = next(path for path in MADE if path.is_file() and kind_of(path) == "vit")
    for number, path in enumerate([stolen, FORMS / "conv" / "copy" / "model.safetensors"]):
        members[f"assets/{number}/{path.name}"] = path
    members["lib/base.safetensors"] = FORMS / "vit" / "base" / "model.safetensors"
    with zipfile.ZipFile(app, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in members.items():
            archive.write(path, name)
        archive.writestr("classes.dex", b"dex\n035" + bytes(1000))

    result = trace(app, vaults["vit"], base=FORMS / "vit" / "base")

    assert {score.recipient for score in result.accused} == {RECIPIENT}
    assert len(result.files) == 3
    assert f"app.apk/assets/0/{stolen.name}" in result.files


def test_the_base_in_another_form_accuses_nobody(vaults, tmp_path):
    with zipfile.ZipFile(tmp_path / "app.ipa", "w") as archive:
        archive.write(FORMS / "vit" / "base" / "model.safetensors", "Payload/App.app/base.safetensors")

    result = trace(tmp_path / "app.ipa", vaults["vit"], base=FORMS / "vit" / "base")

    assert result.outcome is Outcome.NOBODY


IN_SEVERAL_FILES = [
    path for path in MADE if path.is_dir() or path.suffix == ".xml" or path.name.startswith("external")
]
ALONE = {path.suffix: path for path in MADE if path not in IN_SEVERAL_FILES}  # one of each kind of file


@pytest.mark.parametrize("form", [*IN_SEVERAL_FILES, *ALONE.values()], ids=lambda path: f"{kind_of(path)}-{path.name}")
def test_each_form_is_found_in_a_repo_with_its_further_files(vaults, tmp_path, monkeypatch, form):
    repo = tmp_path / "repo"
    repo.mkdir()
    siblings = [form, *form.parent.glob(f"{form.name}[._]data*"), form.with_suffix(".bin")]
    for path in filter(Path.exists, dict.fromkeys(siblings)):
        shutil.copytree(path, repo / path.name) if path.is_dir() else shutil.copy(path, repo)
    with LoopbackHub() as hub:
        hub.add("org/name", repo)
        hub.point_client(monkeypatch, tmp_path / "cache")

        found = find_weight_sets("org/name", max_bytes=10**8)

    here = find_weight_sets(form)
    assert [len(source.weights) for source in found.sets] == [len(source.weights) for source in here.sets]
    assert found.unread == here.unread == ()


@pytest.mark.parametrize("form", (FORMS / "vit" / "made").glob("*.safetensors"), ids=lambda path: path.name)
def test_a_quantized_checkpoint_in_a_repo_is_traced(vaults, tmp_path, monkeypatch, form):
    (tmp_path / "repo").mkdir()
    shutil.copy(form, tmp_path / "repo" / "model.safetensors")
    with LoopbackHub() as hub:
        hub.add("org/name", tmp_path / "repo")
        hub.point_client(monkeypatch, tmp_path / "cache")

        result = trace("org/name", vaults["vit"], base=FORMS / "vit" / "base")

    assert {score.recipient for score in result.accused} == {RECIPIENT}
