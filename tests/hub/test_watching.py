import json
from datetime import UTC, datetime, timedelta

import pytest
from loopback_hub_faults import Fault
from refusals import refused
from small_models import PASSPHRASE, bytes_of, plain_arrays, save_plain

from hf_fingerprint import Issuer
from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import HubError
from hf_fingerprint.hub import Assignment, Publisher, watch
from hf_fingerprint.hub.watching import parse_since


@pytest.fixture
def shown(hub, mine, tmp_path):
    """Three models by a stranger: a leak of alice's copy, an innocent one, one that is gated; and our own variant."""
    with Issuer(mine.model, mine.vault) as issuer:
        copy = issuer.issue("alice", tmp_path / "alice")
        Publisher(mine.vault, work=mine.work).issue(issuer, Assignment("bob", "org/variant"))
    hub.add("thief/leak", bytes_of(copy.path))
    hub.add("thief/innocent", bytes_of(save_plain(tmp_path / "innocent", plain_arrays(seed=9))))
    hub.add("thief/gated", bytes_of(copy.path), gated=True)
    mine.vault.unlock(PASSPHRASE)
    return mine


def test_an_authors_models_are_looked_at_and_one_that_is_closed_does_not_end_it(hub, shown):
    found = {one.model: one for one in watch(["thief"], shown.vault)}

    assert set(found) == {"thief/leak", "thief/innocent", "thief/gated"}
    assert found["thief/leak"].accused == ("alice",)
    assert found["thief/leak"].revision == hub.repos["thief/leak"].refs["main"]
    assert found["thief/leak"].log10_false_accusation < -6
    assert found["thief/leak"].modified is not None
    assert found["thief/innocent"].accused == ()
    assert "ask for access" in found["thief/gated"].error


def test_what_the_vault_published_is_passed_over_and_nothing_is_looked_at_twice(hub, shown):
    names = ["thief/leak", "org", "thief/leak", "org/variant"]

    assert [one.model for one in watch(names, shown.vault)] == ["thief/leak"]


def test_what_did_not_change_since_is_passed_over_unread(hub, shown):
    before = len(hub.calls)
    later = datetime.now(UTC) + timedelta(days=1)

    assert list(watch(["thief", "thief/leak"], shown.vault, later)) == []
    assert not any("resolve" in call.path for call in hub.calls[before:])
    assert len(list(watch(["thief"], shown.vault, later - timedelta(days=2)))) == 3


def test_an_author_who_cannot_be_listed_is_one_sentence(hub, shown):
    hub.faults.append(Fault(match=r"GET /api/models\?", status=401))

    assert "log in again" in refused(lambda: list(watch(["thief"], shown.vault)), error=HubError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T12:00+02:00", datetime(2026, 11, 1, 10, tzinfo=UTC)),
    ],
)
def test_times_are_dates(text, expected):
    assert parse_since(text) == expected


def test_times_are_as_long_ago():
    ago = datetime.now(UTC) - parse_since("12h")

    assert abs(ago - timedelta(hours=12)) < timedelta(minutes=1)


@pytest.mark.parametrize("text", ["", "yesterday", "d", "7w", "2026-13-01", "99999999999d"])
def test_other_times_are_one_sentence(text):
    assert "is no time" in refused(parse_since, text, error=HubError)


def test_the_command_prints_a_line_for_each(hub, shown, tmp_path, capfd):
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    common = ["--vault", str(shown.vault.folder), "--passphrase-file", str(tmp_path / "passphrase")]
    capfd.readouterr()

    assert main(["watch", "thief", *common]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted(line["model"] for line in lines) == ["thief/gated", "thief/innocent", "thief/leak"]
    assert main(["watch", "thief/innocent", *common]) == 1
    assert main(["watch", "thief", "--since", "soon", *common]) == 2
