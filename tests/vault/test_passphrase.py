import getpass
import io
import sys

import pytest

from hf_fingerprint.errors import PassphraseError
from hf_fingerprint.vault import find_passphrase
from hf_fingerprint.vault.passphrase import PASSPHRASE_VARIABLE


class Terminal:
    """A person at the keyboard, or nobody."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._patch = monkeypatch
        self.prompts: list[str] = []

    def nobody(self) -> None:
        """Standard input is a pipe."""
        self._patch.setattr(sys, "stdin", io.StringIO("piped\n"))
        self._patch.setattr(getpass, "getpass", lambda prompt="": pytest.fail("prompted"))

    def types(self, *typed: str | BaseException) -> None:
        """Somebody typed the prompts, one after another."""
        waiting = iter(typed)
        stdin = io.StringIO()
        stdin.isatty = lambda: True
        self._patch.setattr(sys, "stdin", stdin)

        def ask(prompt: str = "") -> str:
            self.prompts.append(prompt)
            answer = next(waiting)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        self._patch.setattr(getpass, "getpass", ask)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    found = Terminal(monkeypatch)
    found.nobody()
    return found


def refused(*args, **options) -> str:
    with pytest.raises(PassphraseError) as caught:
        find_passphrase(*args, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"first\nsecond\n", "first"),
        (b"  with spaces \n", "  with spaces "),
        ("Größe 日本\n".encode(), "Größe 日本"),
    ],
)
def test_the_passphrase_is_the_first_line_of_the_file(tmp_path, terminal, content, passphrase):
    (tmp_path / "p").write_bytes(content)

    assert find_passphrase(tmp_path / "p") == passphrase


@pytest.mark.parametrize("content", [b"form\x0cfeed\n", "line\u2028separator\n".encode(), b"unit\x1cseparator\n"])
def test_only_a_line_break_ends_the_line(tmp_path, terminal, content):
    (tmp_path / "p").write_bytes(content)

    assert find_passphrase(tmp_path / "p") == content.decode().rstrip("\n")


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"\nsecond line\n", b"\xff\xfe\x00"])
def test_a_file_without_a_passphrase_is_refused_by_name(tmp_path, terminal, content):
    (tmp_path / "p").write_bytes(content)

    assert str(tmp_path / "p") in refused(tmp_path / "p")


def test_a_missing_file_is_refused_by_name_and_nothing_else_is_tried(tmp_path, terminal, monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    terminal.types("typed")

    assert str(tmp_path / "gone") in refused(tmp_path / "gone")
    assert str(tmp_path) in refused(tmp_path)
    assert terminal.prompts == []


def test_the_file_comes_before_the_environment(tmp_path, terminal, monkeypatch):
    (tmp_path / "p").write_text("from the file")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")

    assert find_passphrase(tmp_path / "p") == "from the file"


def test_the_environment_comes_before_the_terminal(terminal, monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    terminal.types("typed")

    assert find_passphrase(confirm=True) == "from the environment"
    assert terminal.prompts == []


def test_an_empty_variable_is_none(terminal, monkeypatch):
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "")
    terminal.types("typed")

    assert find_passphrase() == "typed"


def test_without_file_variable_and_terminal_the_refusal_names_all_three(terminal):
    text = refused()

    assert PASSPHRASE_VARIABLE in text
    assert "--passphrase-file" in text
    assert "terminal" in text


def test_without_any_standard_input_it_is_refused_all_the_same(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)

    assert PASSPHRASE_VARIABLE in refused()


def test_what_is_piped_in_is_not_taken_for_a_passphrase(terminal):
    refused()


def test_the_prompt_appears_once(terminal):
    terminal.types("typed")

    assert find_passphrase() == "typed"
    assert len(terminal.prompts) == 1


def test_the_prompt_for_a_new_passphrase_appears_twice(terminal):
    terminal.types("typed", "typed")

    assert find_passphrase(confirm=True) == "typed"
    assert len(terminal.prompts) == 2


def test_two_that_differ_are_refused_and_neither_is_shown(terminal):
    terminal.types("hunter2", "hunter3")

    assert "hunter" not in refused(confirm=True)


def test_end_of_input_at_the_prompt_is_an_error(terminal):
    terminal.types(EOFError())

    refused()
