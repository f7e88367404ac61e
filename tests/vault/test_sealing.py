import errno
import json
import os
import stat
import traceback
import warnings
from functools import partial
from pathlib import Path

import pyrage
import pytest

from hf_fingerprint.errors import FingerprintWarning, PassphraseError, VaultError
from hf_fingerprint.vault.passphrase_age import read_log_work
from hf_fingerprint.vault.sealing import (
    AgeIdentity,
    change_passphrase,
    encrypt_identity,
    new_identity,
    open_identity,
    seal,
)
from tests.helpers.checkpoint_files import bytes_of
from tests.helpers.error_checks import refused
from tests.helpers.quick_age import lock_quickly


KEY = bytes(range(32))
RECORD = ("0123456789abcdef", "53e1e7b2c8d4", "Zoë & Söhne")
PASSPHRASE = "Größe, horse, battery"


@pytest.fixture(scope="module")
def identity():
    """A tracing identity and its public key."""
    return new_identity()


@pytest.fixture(scope="module")
def age_identity(identity):
    return AgeIdentity(identity[0])


@pytest.fixture
def locked_file(tmp_path, identity):
    """The identity under a passphrase."""
    (tmp_path / "identity.age").write_bytes(lock_quickly(identity[0], PASSPHRASE))
    return tmp_path / "identity.age"


def sealed_text(content: object, public_key: str) -> bytes:
    """Whatever content, sealed as a record is."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return pyrage.encrypt(text, [pyrage.x25519.Recipient.from_str(public_key)])


refusal = partial(refused, error=VaultError)


def test_a_sealed_key_opens_with_the_identity(identity, age_identity):
    sealed = seal(KEY, *RECORD, identity[1])

    assert age_identity.unseal(sealed, *RECORD) == KEY
    assert sealed.startswith(b"age-encryption.org/v1\n")
    assert KEY not in sealed
    assert KEY.hex().encode() not in sealed


def test_the_same_key_never_looks_the_same_twice(identity):
    assert seal(KEY, *RECORD, identity[1]) != seal(KEY, *RECORD, identity[1])


def test_a_sealed_key_is_what_the_age_library_says_it_is(identity):
    sealed = seal(KEY, *RECORD, identity[1])

    content = json.loads(pyrage.decrypt(sealed, [pyrage.x25519.Identity.from_str(identity[0])]))

    assert content == {"v": 1, "copy": RECORD[0], "base": RECORD[1], "recipient": RECORD[2], "key": KEY.hex()}


def test_two_identities_are_never_the_same():
    assert len({part for _ in range(20) for part in new_identity()}) == 40


def test_another_identity_cannot_open_it(identity):
    text = refusal(AgeIdentity(new_identity()[0]).unseal, seal(KEY, *RECORD, identity[1]), *RECORD)

    assert RECORD[0] in text
    assert RECORD[2] in text


@pytest.mark.parametrize("column", range(3))
def test_a_seal_does_not_fit_another_record(identity, age_identity, column):
    sealed = seal(KEY, *RECORD, identity[1])
    other = [value + "x" if number == column else value for number, value in enumerate(RECORD)]

    assert other[0] in refusal(age_identity.unseal, sealed, *other)


def test_not_one_bit_of_a_seal_may_change(identity, age_identity):
    sealed = seal(KEY, *RECORD, identity[1])
    for position in range(0, len(sealed), 7):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        try:
            found = age_identity.unseal(bytes(damaged), *RECORD)
        except VaultError as error:
            assert RECORD[0] in str(error)
        else:
            pytest.fail(f"opened with byte {position} changed: {found == KEY}")


@pytest.mark.parametrize("length", [0, 1, 21, 100, -1])
def test_a_truncated_seal_is_refused(identity, age_identity, length):
    assert RECORD[0] in refusal(age_identity.unseal, seal(KEY, *RECORD, identity[1])[:length], *RECORD)


GOOD = {"v": 1, "copy": RECORD[0], "base": RECORD[1], "recipient": RECORD[2], "key": KEY.hex()}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        [],
        "text",
        None,
        7,
        {},
        {**GOOD, "key": "zz" * 32},
        {**GOOD, "key": None},
        {**GOOD, "key": 7},
        {**GOOD, "key": KEY.hex()[:-2]},
        {**GOOD, "key": KEY.hex() + "00"},
        {**GOOD, "key": ""},
        {key: value for key, value in GOOD.items() if key != "copy"},
        {**GOOD, "recipient": None},
        {**GOOD, "copy": ["x"]},
    ],
    ids=repr,
)
def test_a_seal_around_something_else_is_refused_by_the_records_name(identity, age_identity, content):
    text = refusal(age_identity.unseal, sealed_text(content, identity[1]), *RECORD)

    assert RECORD[0] in text
    assert KEY.hex()[:-2] not in text


def test_an_identity_locked_by_another_implementation_of_age_opens(identity, locked_file):
    found = open_identity(locked_file, PASSPHRASE)

    assert found.public_key == identity[1]
    assert found.unseal(seal(KEY, *RECORD, identity[1]), *RECORD) == KEY


def test_a_wrong_passphrase_is_refused_by_the_files_name_and_never_repeated(locked_file):
    locked = locked_file.read_bytes()
    guess = "Groesse, horse, battery"
    with pytest.raises(PassphraseError) as caught:
        open_identity(locked_file, guess)

    assert str(locked_file) in str(caught.value)
    assert guess not in "".join(traceback.format_exception(caught.value))
    assert locked_file.read_bytes() == locked


def test_an_empty_passphrase_locks_nothing(identity):
    with pytest.raises(PassphraseError) as caught:
        encrypt_identity(identity[0], "")

    assert identity[0] not in str(caught.value)


def test_a_missing_identity_is_refused_by_name(tmp_path):
    assert str(tmp_path / "gone.age") in refusal(open_identity, tmp_path / "gone.age", PASSPHRASE)
    assert str(tmp_path) in refusal(open_identity, tmp_path, PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"age-encryption.org/v1\n", b"AGE-SECRET-KEY-", bytes(300), b"\xff" * 300])
def test_a_file_that_is_no_locked_identity_is_refused_by_name(tmp_path, content):
    (tmp_path / "identity.age").write_bytes(content)

    assert str(tmp_path / "identity.age") in refusal(open_identity, tmp_path / "identity.age", PASSPHRASE)


def test_a_file_sealed_to_a_key_is_not_taken_for_a_locked_identity(tmp_path, identity):
    (tmp_path / "identity.age").write_bytes(sealed_text(identity[0].encode(), identity[1]))

    assert "identity.age" in refusal(open_identity, tmp_path / "identity.age", PASSPHRASE)


def test_a_passphrase_around_something_else_is_refused_without_showing_it(tmp_path):
    (tmp_path / "identity.age").write_bytes(lock_quickly("AGE-SECRET-KEY-1NOTREALLY", PASSPHRASE))

    text = refusal(open_identity, tmp_path / "identity.age", PASSPHRASE)

    assert "identity.age" in text
    assert "NOTREALLY" not in text


def test_an_open_identity_shows_its_public_key_only(identity, age_identity):
    shown = f"{age_identity!r} {age_identity} {age_identity!s:>200}"

    assert identity[1] in shown
    assert identity[0] not in shown
    assert identity[0].removeprefix("AGE-SECRET-KEY-1") not in shown


# How hard a passphrase is to guess, and sealing an identity again


def test_a_weak_identity_opens_with_a_warning_that_says_how_to_mend_it(locked_file, monkeypatch):
    monkeypatch.setattr("hf_fingerprint.vault.passphrase_age.LOG_WORK", 9)

    with pytest.warns(FingerprintWarning) as caught:
        assert open_identity(locked_file, PASSPHRASE)
    (warning,) = caught
    assert str(locked_file) in str(warning.message) and "`hf-fingerprint vault passphrase`" in str(warning.message)
    assert PASSPHRASE not in str(warning.message)


@pytest.mark.parametrize("new", [PASSPHRASE, "another passphrase"])
def test_an_identity_sealed_again_is_as_hard_to_guess_as_a_new_one(locked_file, identity, monkeypatch, new):
    monkeypatch.setattr("hf_fingerprint.vault.passphrase_age.LOG_WORK", 9)
    (locked_file.parent / ".identity.age.0123abcd").write_bytes(b"left by a killed process")
    before = locked_file.read_bytes()

    assert change_passphrase(locked_file, PASSPHRASE, new).public_key == identity[1]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_identity(locked_file, new).public_key == identity[1]
    assert read_log_work(locked_file.read_bytes()) == 9
    assert [path.name for path in locked_file.parent.iterdir()] == ["identity.age"], "nothing of the old seal is left"
    assert before != locked_file.read_bytes()
    assert stat.S_IMODE(locked_file.stat().st_mode) == 0o600
    if new != PASSPHRASE:
        assert "does not open" in refusal(open_identity, locked_file, PASSPHRASE)


@pytest.mark.parametrize(("passphrase", "new"), [("a guess", "another passphrase"), (PASSPHRASE, "")])
def test_an_identity_that_can_not_be_sealed_again_is_unchanged(locked_file, passphrase, new):
    before = locked_file.read_bytes()

    refused(change_passphrase, locked_file, passphrase, new, error=PassphraseError)

    assert locked_file.read_bytes() == before
    assert len(list(locked_file.parent.iterdir())) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_interrupted_while_it_is_sealed_again_the_old_file_stays(locked_file, monkeypatch, step):
    before = locked_file.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)

    said = refusal(change_passphrase, locked_file, PASSPHRASE, "another passphrase")
    assert f"The disk of {locked_file.parent} is full" in said
    assert bytes_of(locked_file.parent) == {"identity.age": before}


def test_a_link_to_an_identity_stays_one(locked_file, tmp_path):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "identity.age"
    link.symlink_to(locked_file)

    change_passphrase(link, PASSPHRASE, "another passphrase")

    assert link.is_symlink()
    assert open_identity(locked_file, "another passphrase")


def test_an_identity_that_age_keygen_wrote_and_age_locked_opens(tmp_path, identity):
    text = f"# created: 2026-08-01T12:00:00Z\n# public key: {identity[1]}\n{identity[0]}"
    (tmp_path / "identity.age").write_bytes(lock_quickly(text, PASSPHRASE))

    assert open_identity(tmp_path / "identity.age", PASSPHRASE).public_key == identity[1]


def test_two_identities_in_a_file_are_refused_without_showing_them(tmp_path, identity):
    (tmp_path / "identity.age").write_bytes(lock_quickly(f"{identity[0]}\n{new_identity()[0]}", PASSPHRASE))

    said = refusal(open_identity, tmp_path / "identity.age", PASSPHRASE)
    assert "holds no tracing identity" in said and "SECRET" not in said
