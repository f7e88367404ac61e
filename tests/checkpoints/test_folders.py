import errno
import os

import pytest

from hf_fingerprint.checkpoints import remove_on_failure, resolve_parent
from hf_fingerprint.errors import CheckpointError, StorageError
from tests.helpers.error_checks import refused


@pytest.mark.parametrize(
    ("number", "error", "what"),
    [(errno.ENOSPC, StorageError, "is full: make room"), (errno.EROFS, CheckpointError, "Read-only file system")],
)
def test_a_disk_error_is_one_sentence_and_leaves_nothing(tmp_path, number, error, what):
    def fill():
        with remove_on_failure(tmp_path / "half"):
            (tmp_path / "half").mkdir()
            (tmp_path / "half" / "file").write_bytes(b"something")
            raise OSError(number, os.strerror(number))

    said = refused(fill, error=error)
    assert str(tmp_path) in said and what in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_folder_stays_once_it_is_made_and_any_other_end_leaves_nothing(tmp_path, stop):
    with remove_on_failure(tmp_path / "made"):
        (tmp_path / "made").mkdir()
    with pytest.raises(stop), remove_on_failure(tmp_path / "half"):
        (tmp_path / "half").mkdir()
        raise stop

    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def test_resolve_parent_follows_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert resolve_parent(tmp_path / "link" / "new") == (tmp_path / "real").resolve()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_an_invalid_name_is_refused(tmp_path, name):
    assert "can't be written" in refused(resolve_parent, tmp_path / name, error=CheckpointError)
