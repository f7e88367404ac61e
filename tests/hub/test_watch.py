import json
import math
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hf_fingerprint import Issuer
from hf_fingerprint.cli.main import main
from hf_fingerprint.errors import HubError
from hf_fingerprint.hub import Assignment, Publisher, watch
from hf_fingerprint.hub.watch import WatchResult, parse_since, watch_exit_code
from hf_fingerprint.tracing.many import trace_with
from tests.helpers.checkpoint_files import entry, raw_safetensors
from tests.helpers.error_checks import refused
from tests.helpers.loopback_hub import Blob, HubHandler, Refusal
from tests.helpers.loopback_hub_faults import Fault
from tests.helpers.small_models import PASSPHRASE, bytes_of, plain_arrays, save_plain


@pytest.fixture
def shown(hub, mine, tmp_path):
    """Three models by a stranger: a leak of alice's copy, an innocent one, one that is gated; and our own variant."""
    with Issuer(mine.model, mine.vault) as issuer:
        copy = issuer.issue("alice", tmp_path / "alice")
        Publisher(mine.vault, work=mine.work).issue(issuer, Assignment("bob", "org/variant"))
    hub.add("attacker/leak", bytes_of(copy.path))
    hub.add("attacker/innocent", bytes_of(save_plain(tmp_path / "innocent", plain_arrays(seed=9))))
    hub.add("attacker/gated", bytes_of(copy.path), gated=True)
    mine.vault.unlock(PASSPHRASE)
    return mine


def test_an_authors_models_are_looked_at_and_one_that_is_closed_does_not_end_it(hub, shown):
    found = {one.model: one for one in watch(["attacker"], shown.vault)}

    assert set(found) == {"attacker/leak", "attacker/innocent", "attacker/gated"}
    assert found["attacker/leak"].accused == ("alice",)
    assert [(a.recipient, a.state) for a in found["attacker/leak"].accusations] == [("alice", "written")]
    assert found["attacker/leak"].revision == hub.repos["attacker/leak"].refs["main"]
    assert found["attacker/leak"].log10_false_accusation < -6
    assert found["attacker/leak"].modified is not None
    assert found["attacker/innocent"].accused == ()
    assert "ask for access" in found["attacker/gated"].error


def test_nothing_is_looked_at_twice(hub, shown):
    names = ["attacker/leak", "org", "attacker/leak", "org/variant"]

    assert [one.model for one in watch(names, shown.vault)] == ["attacker/leak", "org/variant"]


def test_a_variant_on_record_is_traced_and_said_to_be_what_it_is(hub, shown):
    (found,) = watch(["org"], shown.vault)

    assert (found.accused, found.variant_of, found.expected, found.note) == (("bob",), ("bob",), True, None)
    assert watch_exit_code([found]) == 1
    hub.repos["org/variant"].private = False
    (found,) = watch(["org"], shown.vault)
    assert found.expected
    assert "the repo is public" in found.note


@pytest.mark.parametrize("name", ["attacker/leak", "hf-hub:attacker/leak", "Attacker/Leak"])
def test_a_publication_hides_no_leak_of_another_copy(hub, shown, name):
    """A colleague adds a record that bob's copy is published where alice's leaked."""
    bob = next(copy for copy in shown.vault.copies() if copy.recipient == "bob")
    with shown.vault.connect() as connection:
        connection.execute(
            "UPDATE publications SET repo = ? WHERE copy_id = ?", (name.removeprefix("hf-hub:"), bob.copy_id)
        )

    (found,) = watch(["attacker/leak"], shown.vault)

    assert (found.accused, found.variant_of, found.expected) == (("alice",), ("bob",), False)
    assert "records this repo as the variant of bob" in found.note
    assert watch_exit_code([found]) == 0


def test_a_variant_that_holds_another_model_is_pointed_out(hub, shown, tmp_path):
    hub.add("org/other", bytes_of(save_plain(tmp_path / "other", plain_arrays(seed=9))))
    with shown.vault.connect() as connection:
        connection.execute("UPDATE publications SET repo = 'org/other'")

    (found,) = watch(["org/other"], shown.vault)

    assert (found.accused, found.expected) == ((), False)
    assert "does not trace to that copy alone" in found.note


def test_what_did_not_change_since_is_passed_over_unread(hub, shown):
    before = len(hub.calls)
    later = datetime.now(UTC) + timedelta(days=1)

    assert list(watch(["attacker", "attacker/leak"], shown.vault, later)) == []
    assert not any("resolve" in call.path for call in hub.calls[before:])
    assert len(list(watch(["attacker"], shown.vault, later - timedelta(days=2)))) == 3


def test_a_folder_keeps_results_and_another_run_traces_what_is_new_or_failed(hub, shown, tmp_path, monkeypatch):
    traced = []

    def record(records, suspect, **options):
        traced.append(suspect)
        return trace_with(records, suspect, **options)

    monkeypatch.setattr(sys.modules[WatchResult.__module__], "trace_with", record)
    first = list(watch(["attacker"], shown.vault, out=tmp_path / "out"))
    again = list(watch(["attacker"], shown.vault, out=tmp_path / "out"))
    final = {each.model for each in first if each.is_final}
    hub.add("attacker/innocent", bytes_of(save_plain(tmp_path / "innocent-2", plain_arrays(seed=10))))
    changed = list(watch(["attacker"], shown.vault, out=tmp_path / "out"))

    assert {each.model: each.accused for each in again} == {each.model: each.accused for each in first}
    assert [each for each in again if each.is_final] == [each for each in first if each.is_final]
    assert "attacker/leak" in final and "attacker/gated" not in final
    assert traced.count("hf-hub:attacker/leak") == 1
    assert traced.count("hf-hub:attacker/gated") == 3
    assert traced.count("hf-hub:attacker/innocent") == 2
    assert len(changed) == 3


def test_each_result_has_the_outcome_of_the_trace(hub, shown):
    found = {one.model: one.outcome for one in watch(["attacker"], shown.vault)}

    assert found["attacker/leak"] == "accused"
    assert found["attacker/innocent"] in ("nobody", "not comparable")
    assert found["attacker/gated"] is None


def watch_result(outcome: str | None) -> WatchResult:
    accused = ("alice",) if outcome == "accused" else ()
    return WatchResult("org/x", None, None, accused, outcome=outcome, error=None if outcome else "It failed.")


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["accused"], 0),
        (["nobody", None, "not readable", "accused"], 0),
        ([None], 2),
        ([None, None], 2),
        (["nobody", None], 3),
        (["not comparable", "not readable"], 3),
        (["not readable", None], 3),
        (["nobody", "not comparable"], 1),
        ([], 1),
    ],
)
def test_the_exit_code_is_1_only_where_every_look_ended_in_nobody(outcomes, code):
    assert watch_exit_code(watch_result(outcome) for outcome in outcomes) == code


def test_an_author_without_models_is_one_sentence_and_not_nobody(hub, shown, tmp_path, capfd):
    hub.add("secretive/model", {"config.json": b"{}"}, private=True)
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    common = ["--vault", str(shown.vault.folder), "--passphrase-file", str(tmp_path / "passphrase")]

    for author in ("nobody-there", "secretive"):
        assert author in refused(lambda author=author: list(watch([author], shown.vault)), error=HubError)
        assert main(["watch", author, *common]) == 2
    capfd.readouterr()
    assert main(["watch", "attacker", "--since", "2099-01-01", *common]) == 1
    assert "No model was traced" in capfd.readouterr().err


@pytest.mark.parametrize("max_bytes", [0, 100, 1000])
def test_no_more_of_a_model_is_fetched_than_the_limit(hub, shown, max_bytes):
    (found,) = watch(["attacker/leak"], shown.vault, max_bytes=max_bytes)

    assert hub.bytes_sent <= max_bytes
    assert found.accused == ()
    assert found.error or found.outcome == "not readable"


def test_different_models_are_distinguished_by_their_headers(hub, shown, tmp_path, monkeypatch):
    wholes = []

    def send_part(self, data, headers, ranges):
        if self.command == "GET" and self.headers.get("Range") is None and len(data) > 10**7:
            wholes.append(self.path)
            raise Refusal(403, None, "All of it is too much for a test")
        return plain(self, data, headers, ranges)

    plain = HubHandler.send_part
    monkeypatch.setattr(HubHandler, "send_part", send_part)
    for number in range(10):
        hub.add(f"stranger/model-{number}", unlike(tmp_path / f"{number}", sharded=number % 2 == 1))
    before = hub.bytes_sent

    found = list(watch(["stranger"], shown.vault))

    assert len(found) == 10
    assert wholes == []
    assert hub.bytes_sent - before < 10**7
    assert {(one.outcome, one.error) for one in found} == {("not comparable", None)}


def unlike(folder: Path, sharded: bool) -> dict[str, bytes | Blob]:
    """A model of 1 GB that takes no room on the disk, of another architecture: convolutions with biases, in one file
    or in two with an index."""
    folder.mkdir()
    layers = {f"stages.{i}.conv.weight": [1024, 512, 11, 11] for i in range(4)}
    layers |= {f"stages.{i}.conv.bias": [1024] for i in range(4)}
    parts = [list(layers)[::2], list(layers)[1::2]] if sharded else [list(layers)]
    names = [f"model-{i}.safetensors" for i in (1, 2)] if sharded else ["model.safetensors"]
    files: dict[str, bytes | Blob] = {"config.json": b"{}"}
    for name, part in zip(names, parts, strict=True):
        end, header = 0, {}
        for layer in part:
            size = 4 * math.prod(layers[layer])
            header[layer], end = entry(layers[layer], end, end + size), end + size
        with (folder / name).open("wb") as stream:
            stream.write(raw_safetensors(header))
            stream.truncate(stream.tell() + end)
        files[name] = Blob.on_disk(folder / name)
    if sharded:
        weight_map = {layer: name for name, part in zip(names, parts, strict=True) for layer in part}
        files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


def test_an_author_who_cannot_be_listed_is_one_sentence(hub, shown):
    hub.faults.append(Fault(match=r"GET /api/models\?", status=401))

    assert "log in again" in refused(lambda: list(watch(["attacker"], shown.vault)), error=HubError)


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
    assert "is not a time" in refused(parse_since, text, error=HubError)


def test_the_command_prints_a_line_for_each(hub, shown, tmp_path, capfd):
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    common = ["--vault", str(shown.vault.folder), "--passphrase-file", str(tmp_path / "passphrase")]
    capfd.readouterr()

    assert main(["watch", "attacker", *common]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted(line["model"] for line in lines) == ["attacker/gated", "attacker/innocent", "attacker/leak"]
    assert main(["watch", "attacker/innocent", *common]) == 1
    assert main(["watch", "attacker", "--since", "soon", *common]) == 2
    assert main(["watch", "attacker", "--max-mb", "inf", *common]) == 2
    assert "is not a finite number of MB" in capfd.readouterr().err
    assert main(["watch", "attacker/gated", *common]) == 2
    assert main(["watch", "attacker/innocent", "attacker/gated", *common]) == 3
