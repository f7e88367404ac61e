import json
from functools import partial
from unittest.mock import patch

import pytest

from hf_fingerprint.attacks import SUITE
from tests.helpers.evaluation_runs import save_images, save_model_and_images
from tests.helpers.quick_age import lock_quickly


pytestmark = pytest.mark.integration
FEW = ["--expected-recipients", "4", "--coalition", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small model and 40 images."""
    return save_model_and_images(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def run(run, place):
    """Evaluates in this process: `(exit code, stdout, stderr)`."""
    with patch("hf_fingerprint.vault.store.encrypt_identity", lock_quickly):
        yield partial(run, "evaluate")


def failed(outcome: tuple[int, str, str]) -> str:
    """What an error says in its one line, the last."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("Error: ")
    return err


def test_a_model_is_evaluated_and_again_in_no_time(place, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    arguments = [place / "model", "--data", place / "images", "--out", place / "out", *FEW]
    chosen = ["--attacks", "half,average", "--coalitions", "2,3", "--max-images", "20"]
    code, out, err = run(*arguments, *chosen)
    again, printed, _ = run(*arguments, *chosen, "--json")
    summary = json.loads(printed)

    assert (code, again) == (0, 0)
    assert err.splitlines().count("issuing 3 copies") == 1
    assert "a copy as issued" in out
    assert str(place / "out" / "report.html") in out.replace("\n", "")
    assert json.loads((place / "out" / "results.json").read_text()) == summary
    assert [trial["attack"] for trial in summary["trials"]][2:] == ["half", "average", "average"]
    assert summary["data"]["test_images"] == 20
    assert len((place / "out" / "private" / "results.jsonl").read_text().splitlines()) == 5


def test_scores_of_recipients_who_are_not_accused_are_printed_only_with_all_scores(place, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [
        place / "model",
        "--data",
        place / "images",
        "--out",
        place / "out",
        *FEW,
        "--attacks",
        "reinitialize-end",
    ]
    shown, full = (json.loads(run(*arguments, "--json", *more)[1]) for more in ([], ["--all-scores"]))
    code, table, err = run(*arguments, "--all-scores")
    lost = [i for i, trial in enumerate(full["trials"]) if trial["caught"] == [False]]

    assert lost
    assert code == 0
    assert "do not publish" in err
    assert "do not publish" not in run(*arguments)[2]
    assert "below the bound" in run(*arguments)[1]
    assert "below the bound" not in table
    for trial, whole in zip(shown["trials"], full["trials"], strict=True):
        assert trial["scores"] == [s if c else None for s, c in zip(whole["scores"], whole["caught"], strict=True)]
        assert trial["highest_innocent"] is None
        assert trial["histogram"] == []
        assert whole["histogram"]


def test_the_attacks_are_listed_with_their_groups_and_strengths(run):
    code, out, _ = run("--list")

    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == list(SUITE)
    assert "0.5" in next(line for line in out.splitlines() if line.split()[1] == "prune")


@pytest.mark.parametrize("missing", ["model", "data", "out"])
def test_a_missing_argument_is_named(place, run, missing):
    given = {"model": [place / "model"], "data": ["--data", place / "images"], "out": ["--out", place / "none"]}
    arguments = [part for name, parts in given.items() if name != missing for part in parts]

    assert "--data" in failed(run(*arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attacks", "half,hammer"], "There is no attack called hammer: choose among finetune"),
        (["--coalitions", "three"], "three is not a list of numbers"),
        (["--coalitions", "1"], "2 copies or more"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(place, run, arguments, said):
    given = [place / "model", "--data", place / "images", "--out", place / "nothing"]

    assert said in failed(run(*given, *arguments))
    assert not (place / "nothing").exists()


def test_a_folder_of_something_else_and_unfit_images_are_refused_before_anything_is_made(place, tmp_path, run):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("mine")
    save_images(tmp_path / "one", ["2"], each=30)
    given = [place / "model", *FEW, "--attacks", "half"]

    assert "one class" in failed(run(*given, "--data", tmp_path / "one", "--out", place / "out"))
    broken = save_images(tmp_path / "broken", ["0", "1"], each=30)
    for path in broken.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "can't be read as an image" in failed(run(*given, "--data", broken, "--out", tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert "other contents" in failed(run(*given, "--data", place / "images", "--out", tmp_path / "thesis"))
