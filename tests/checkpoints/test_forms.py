"""Files and folders that users have are read, or refused with the right reason and a remedy."""

from pathlib import Path

import pytest

from hf_fingerprint.checkpoints import find_weight_sets, open_checkpoint
from hf_fingerprint.errors import CheckpointError
from tests.helpers.checkpoint_files import refused
from tests.helpers.weight_files import FORMS, READ, expected_bytes, outcome


NOTHING_ELSE = (  # suspects may have these
    "several files", "an optimizer's state alone", "views that overlap in part", "torch.export",
)  # fmt: skip


def test_there_are_forty_weight_files():
    assert len(FORMS) >= 40


@pytest.mark.parametrize("name", FORMS)
def test_each_base_is_read_or_refused_with_the_right_reason(tmp_path, name):
    make, expected = FORMS[name]

    read, said = outcome(make(tmp_path))

    if expected == READ:
        assert (said, read) == ("", expected_bytes())
        return
    assert read == {}
    assert expected in said
    assert "could run its code" not in said
    assert said.endswith(".")
    assert ": " in said, "it names no way out"


@pytest.mark.parametrize("name", FORMS)
def test_each_suspect_is_read_or_listed_with_the_right_reason(tmp_path, name):
    make, expected = FORMS[name]
    place = make(tmp_path)
    try:
        found = find_weight_sets(place)
    except CheckpointError as error:
        assert expected not in (READ, *NOTHING_ELSE)
        assert expected in str(error)
        return

    packed = expected in ("unpack it", "gzip", "NumPy")  # a suspect's archives are unpacked, and it may be arrays
    if expected == READ or packed or name in NOTHING_ELSE:
        assert found.sets
        with open_checkpoint(found.sets[0], suspect=True) as suspect:
            assert suspect.tensors
            own = {n: suspect.read(info).tobytes() for n, info in suspect.tensors.items()}
        if expected == READ:
            assert expected_bytes().items() <= own.items()
    else:
        assert found.sets == ()
        reasons = [reason for _, reason in found.unread]
        assert any(each in reason for reason in reasons for each in (expected, "convert", "file without weights"))


def test_a_missing_chosen_file_is_refused_with_the_existing_ones(tmp_path):
    make, _ = FORMS["several files"]
    folder = make(tmp_path)

    assert refused(lambda: open_checkpoint(folder, file="c.pth")).endswith(
        "has no file c.pth: choose one of a.pth, b.pth."
    )
    assert "leads out of" in refused(lambda: open_checkpoint(folder, file="../a.pth"))
    with open_checkpoint(folder, file="a.pth") as chosen:
        assert chosen.source.name == f"{Path(folder).resolve()}:a.pth"
        assert chosen.source.owns_folder
    with open_checkpoint(chosen.source.name) as again:
        assert again.source == chosen.source
