"""Members of a zip, stored or compressed."""

import zipfile

import numpy as np
import pytest

from hf_fingerprint.checkpoints.formats.containers import InvalidFileError
from hf_fingerprint.checkpoints.formats.mapped_files import map_file
from hf_fingerprint.checkpoints.formats.zip_members import PackedMember, ZipMembers, list_members


CONTENT = np.random.default_rng(0).integers(0, 9, 3_000_000).astype(np.uint8)


def zipped(path, method, **members):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as made:
        for name, content in members.items():
            made.writestr(name, bytes(content))
    return path


def members_of(path):
    with path.open("rb", buffering=0) as stream:
        return ZipMembers(stream, map_file(path))


def test_a_stored_member_is_a_view_of_the_file(tmp_path):
    path = zipped(tmp_path / "a.zip", zipfile.ZIP_STORED, weights=CONTENT)

    found = members_of(path).open("weights")

    assert isinstance(found, np.ndarray) and not found.flags.owndata
    np.testing.assert_array_equal(found, CONTENT)
    assert list_members(path) == ["weights"]
    assert members_of(path).open("others") is None


def test_a_compressed_member_is_read_in_parts_forward_and_back(tmp_path):
    members = members_of(zipped(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, weights=CONTENT))

    found = members.open("weights")

    assert isinstance(found, PackedMember) and found.size == len(CONTENT)
    for start, stop in [(0, 10), (10, 2_500_000), (2_700_000, 2_700_001), (5, 7), (2_999_999, 3_000_000), (3, 3)]:
        np.testing.assert_array_equal(found.read(start, stop), CONTENT[start:stop])
    np.testing.assert_array_equal(members.read("weights"), CONTENT)
    zeros = members_of(zipped(tmp_path / "b.zip", zipfile.ZIP_DEFLATED, weights=bytes(9_000))).open("weights")
    assert [zeros.read(at, at + 1).tobytes() for at in range(0, 9_000, 100)] == [b"\0"] * 90


def test_a_member_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, weights=CONTENT)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(len(CONTENT).to_bytes(4, "little"), (len(CONTENT) + 9).to_bytes(4, "little")))

    with pytest.raises(InvalidFileError, match="cut off or damaged"):
        members_of(path).read("weights")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    members = members_of(zipped(tmp_path / "a.zip", zipfile.ZIP_DEFLATED, weights=np.zeros(1 << 25, np.uint8)))

    with pytest.raises(InvalidFileError, match="many times its size"):
        members.open("weights")
