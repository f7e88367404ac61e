import base64
import importlib.util
import os
import pty
import re
import shutil
import textwrap
from functools import partial

import pyrage
import pytest

from hf_fingerprint.errors import PassphraseError
from hf_fingerprint.vault import passphrase_age as module
from hf_fingerprint.vault.passphrase_age import open_with_passphrase, read_log_work, seal_with_passphrase
from tests.helpers.error_checks import refused


PASSPHRASE = "Größe, horse, battery"
TEXT = b"AGE-SECRET-KEY-1EXAMPLE\n"
GOLDEN = base64.b64decode(
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBBQUVDQXdRRkJnY0lDUW9MREEwT0R3IDEwCmxmMTZJdG1WaEQ3VVRzSDBs"
    "NlMwczNWU1JPOFc3N2xuY0FvSjFiajVZYkUKLS0tIHR2YW1sc0FpV1doY0VKRDJacFlHMy9XUjREVWJPV1Q0Y1BJU1IybS9DOU0K"
    "UFFSU1RVVldYWVpbXF1eX/PYjYL3bi9fWS+YzEp2xiLRsaGewAWiKQCYEI+Vk9iiym22LZL42rM="
)
refusal = partial(refused, error=PassphraseError)


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return seal_with_passphrase(TEXT, PASSPHRASE)


def armored(content: bytes, end: str = "\n") -> bytes:
    lines = textwrap.wrap(base64.b64encode(content).decode(), 64)
    return end.join(["-----BEGIN AGE ENCRYPTED FILE-----", *lines, "-----END AGE ENCRYPTED FILE-----", ""]).encode()


def fixed(log_work: int = 10) -> bytes:
    """The same file on every run."""
    return module._assemble(TEXT, PASSPHRASE, log_work, bytes(range(50, 66)), bytes(range(16)), bytes(range(80, 96)))


def test_a_file_is_what_it_always_was():
    assert fixed() == GOLDEN


def test_the_age_library_opens_what_is_sealed_here(sealed):
    assert pyrage.passphrase.decrypt(sealed, PASSPHRASE) == TEXT
    assert pyrage.passphrase.decrypt(GOLDEN, PASSPHRASE) == TEXT


def test_the_work_factor_is_18_on_any_machine():
    spec = importlib.util.find_spec(module.__name__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)  # this one is not made quick for tests

    assert (fresh.LOG_WORK, fresh.MAX_LOG_WORK) == (18, 22)


def test_the_work_factor_is_written_into_the_file(monkeypatch):
    monkeypatch.setattr(module, "LOG_WORK", 11)

    assert read_log_work(seal_with_passphrase(TEXT, PASSPHRASE)) == 11


@pytest.mark.parametrize("log_work", [1, 2, 9, 14, 16])
def test_any_work_factor_opens(log_work):
    assert open_with_passphrase(fixed(log_work), PASSPHRASE, "identity.age") == TEXT


@pytest.mark.parametrize("log_work", ["23", "40", "63", "99999999"])
def test_too_much_work_is_refused_before_any_is_done(sealed, log_work, monkeypatch):
    monkeypatch.setattr(module, "Scrypt", lambda **_: pytest.fail("began"))
    greedy = re.sub(rb"(-> scrypt \S+) \d+", rb"\1 " + log_work.encode(), sealed)

    said = refusal(open_with_passphrase, greedy, PASSPHRASE, "identity.age")
    assert "identity.age" in said and f"2^{log_work}" in said and "2^22" in said


def test_a_machine_without_the_memory_says_how_much_it_takes(sealed, monkeypatch):
    def scrypt(**_):
        raise MemoryError

    monkeypatch.setattr(module, "Scrypt", scrypt)
    costly = re.sub(rb"(-> scrypt \S+) \d+", rb"\1 22", sealed)

    assert "4,096 MB of memory" in refusal(open_with_passphrase, costly, PASSPHRASE, "identity.age")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_armored_file_opens(sealed, end):
    assert open_with_passphrase(armored(sealed, end), PASSPHRASE, "identity.age") == TEXT


def test_a_wrong_passphrase_and_a_damaged_file_give_different_errors(sealed):
    assert "does not open with this passphrase" in refusal(open_with_passphrase, sealed, "another", "a.age")
    for place in (-1, -20, sealed.index(b"---") + 6):
        damaged = bytearray(sealed)
        damaged[place] ^= 1
        said = refusal(open_with_passphrase, bytes(damaged), PASSPHRASE, "a.age")
        assert "a.age is damaged" in said or "not a passphrase-encrypted age file" in said


HEADER = b"age-encryption.org/v1\n-> scrypt AAECAwQFBgcICQoLDA0ODw 10\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"age-encryption.org/v1\n",
        HEADER,
        HEADER + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n",
        HEADER.replace(b" 10", b" 0") + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n" + bytes(40),
        HEADER.replace(b" 10", b" 010") + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n" + bytes(40),
        HEADER.replace(b"ODw", b"ODx") + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n" + bytes(40),  # not canonical
        HEADER + b"A" * 43 + b"\n-> X25519 abc\nabc\n--- " + b"A" * 43 + b"\n" + bytes(40),  # a second stanza
        HEADER.replace(b"v1", b"v2") + b"A" * 43 + b"\n--- " + b"A" * 43 + b"\n" + bytes(40),
        b"-----BEGIN AGE ENCRYPTED FILE-----\n=\n-----END AGE ENCRYPTED FILE-----\n",
        b"-----BEGIN AGE ENCRYPTED FILE-----\n" + b"A" * 20_000,
        bytes(40_000),
    ],
    ids=range(12),
)
def test_another_kind_of_file_is_refused_by_name(content):
    assert "a.age is not a passphrase-encrypted" in refusal(open_with_passphrase, content, PASSPHRASE, "a.age")


def test_a_file_longer_than_an_identity_is_not_read(sealed):
    assert "not a passphrase-encrypted" in refusal(open_with_passphrase, sealed + bytes(40_000), PASSPHRASE, "a.age")


def test_a_passphrase_of_bytes_that_are_no_text_opens_what_it_sealed():
    odd = b"gr\xf6\xdfe".decode("utf-8", "surrogateescape")  # as the environment gives it

    assert open_with_passphrase(seal_with_passphrase(TEXT, odd), odd, "a.age") == TEXT


@pytest.mark.skipif(shutil.which("age") is None, reason="the age command line is not installed")
def test_the_age_command_line_opens_it(tmp_path, sealed):
    (tmp_path / "identity.age").write_bytes(sealed)
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("age", ["age", "-d", "-o", str(tmp_path / "opened"), str(tmp_path / "identity.age")])
    os.read(terminal, 1000)  # it asks
    os.write(terminal, PASSPHRASE.encode() + b"\n")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "opened").read_bytes() == TEXT
