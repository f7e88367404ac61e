"""Hostile pickles are described and never executed, at a bounded cost."""

import builtins
import io
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_fingerprint.checkpoints import digest_tensors, limits, open_checkpoint
from hf_fingerprint.checkpoints.formats.descriptions import CallRecord, GlobalRef, InvalidPickleError
from hf_fingerprint.checkpoints.formats.pytorch import inert_pickles
from hf_fingerprint.checkpoints.formats.pytorch.inert_pickles import read_pickle
from hf_fingerprint.checkpoints.formats.pytorch.torch_calls import build_call
from tests.helpers.checkpoint_files import refused


GOOD = torch.arange(6.0)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(module: str, name: str, *args: bytes) -> bytes:
    """A call, by the oldest instruction for names and the usual one for calls."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR"


def described(body: bytes) -> Any:
    return read_pickle(b"\x80\x02" + body + b".", 0, build_call, lambda found: found)[0]


def with_tensor(path: Path, *evil: bytes) -> Path:
    """A PyTorch zip with a good tensor next to the result of hostile instructions."""
    buffer = io.BytesIO()
    torch.save({"good": GOOD}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(path, "w") as target:
        for member in source.namelist():
            raw = source.read(member)
            if member.endswith("data.pkl"):
                assert raw.endswith(b"s.") or raw.endswith(b".")
                entries = b"".join(text(f"evil{number}") + each + b"s" for number, each in enumerate(evil))
                raw = raw[:-1] + entries + b"."
            target.writestr(member, raw)
    return path


def canary_calls(marker: Path) -> dict[str, bytes]:
    """Instructions, each of which makes the marker when a real unpickler follows it, or would reach further."""
    touch, code = text(f"touch {marker}"), text(f"open({str(marker)!r}, 'w').close()")
    system = b"cos\nsystem\n"
    modules = text("os"), text("system")
    return {
        "system": call("os", "system", touch),
        "posix": call("posix", "system", touch),
        "eval": call("builtins", "eval", code),
        "exec": call("builtins", "exec", code),
        "python 2": call("__builtin__", "eval", code),
        "subprocess": call("subprocess", "check_output", b"(" + text("touch") + text(str(marker)) + b"l"),
        "import": call("importlib", "import_module", text("this")),
        "builtin import": call("builtins", "__import__", text("this")),
        "runpy": call("runpy", "run_path", text(str(marker))),
        "load again": call("torch", "load", text(str(marker))),
        "pickle again": call("pickle", "loads", b"B" + struct.pack("<I", 3) + b"N.."),
        "dotted": b"\x80\x04" + text("os") + text("path.join") + b"\x93" + b"(" + text("a") + b"tR",
        "dunders": b"\x80\x04" + text("builtins") + text("object.__class__.__subclasses__") + b"\x93)R",
        "names from the memo": modules[0] + b"q\x200" + modules[1] + b"q\x210h\x20h\x21\x93(" + touch + b"tR",
        "reconstructor": call("copyreg", "_reconstructor", system, b"c__builtin__\nobject\n", b"N"),
        "partial": call("functools", "partial", system, touch) + b")R",
        "attributes": call("operator", "attrgetter", text("__class__")) + b"N\x85R",
        "method": call("operator", "methodcaller", text("system"), touch) + b"(cos\n__name__\ntR",
        "getattr": call("builtins", "getattr", b"cos\nsystem\n", text("__call__")) + b"(" + touch + b"tR",
        "new object": b"cos\nsystem\n(" + touch + b"t\x81",
        "new object with names": b"cos\nsystem\n(" + touch + b"t}\x92",
        "instance": b"(" + touch + b"ios\nsystem\n",
        "object": b"(cos\nsystem\n" + touch + b"o",
        "state of a class": b"cos\nsystem\n}" + text("__call__") + b"Nsb",
        "state of a made": call("x", "Y") + b"}" + text("__class__") + b"cos\nsystem\nsb",
        "state in slots": call("x", "Y") + b"N}" + text("__dict__") + b"}s\x86b",
        "items": call("x", "Y") + b"(" + touch + touch + b"u(NNe",
        "extensions": b"\x82\x01\x83\x01\x01\x84\x01\x00\x00\x000" + b"0",
        "torch's own": call("torch._utils", "_rebuild_from_type_v2", system, b"N", b"(" + touch + b"t", b"N"),
        "its storage": call("torch.storage", "_load_from_bytes", b"U\x04" + b"cos."),
        "deep": b"(" * 1000 + b"t" * 1000,
        "itself": b"]q\x30h\x30a",
    }


NAMES = list(canary_calls(Path("marker")))


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_pickle_runs_nothing_and_its_tensors_are_read(tmp_path, monkeypatch, name):
    marker = tmp_path / "marker"
    path = with_tensor(tmp_path / "x.pth", canary_calls(marker)[name])
    imported = []
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda n, *a, **k: (imported.append(n), real(n, *a, **k))[1])

    with open_checkpoint(path, suspect=True) as checkpoint:
        found = {n: checkpoint.read(info).tobytes() for n, info in checkpoint.tensors.items()}

    assert found == {"good": GOOD.numpy().tobytes()}
    assert not marker.exists()
    assert not set(imported) & {"this", "os.path", "runpy", "subprocess", "pickle"}
    with open_checkpoint(path) as base:
        assert list(base.tensors) == ["good"]


def test_the_traps_work():
    """A real unpickler runs some of them, so the tests above can fail."""
    done = subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"],
        input=b"\x80\x02" + call("builtins", "exec", text("print('it ran')")) + b".",
        capture_output=True,
    )
    assert b"it ran" in done.stdout


def test_a_name_becomes_a_reference_and_a_call_a_record():
    made = described(call("os", "system", text("true")))

    assert isinstance(made, CallRecord)
    assert isinstance(made.kind, GlobalRef)
    assert (made.kind.module, made.kind.name, made.args) == ("os", "system", ("true",))
    assert made != described(call("os", "system", text("true")))


VALUES: list[Any] = [
    None, True, False, 0, -1, 255, 1 << 40, -(1 << 100), 1.5, "", "größe", "a" * 300, b"", b"x" * 300, b"y" * 70_000,
    bytearray(b"z"), [], [1, [2]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": {1: [None]}},
    {None: 1, True: 2},
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_unchanged(protocol):
    found, end = read_pickle(raw := pickle.dumps(VALUES, protocol), 0, build_call, lambda key: key)

    assert end == len(raw)
    for value, there in zip(VALUES, found, strict=True):
        plain = bytes(there) if isinstance(there, memoryview) else there
        if isinstance(value, bytes | bytearray) and isinstance(plain, CallRecord):
            assert protocol < 5  # made by a call
        else:
            assert plain == value


def test_every_instruction_is_known_or_refused():
    for opcode in pickletools.opcodes:
        with suppress(InvalidPickleError):
            read_pickle(b"(NNN" + opcode.code.encode("latin-1") + b"\x01" * 20, 0, build_call, lambda key: key)


def colliding(form: str, count: int) -> bytes:
    """Numbers that all have one hash, in an instruction."""
    return b"".join(form.encode() % ((2**61 - 1) * number) for number in range(count))


BOMBS = {
    "dictionaries": b"}\x94" * 60_000,
    "tuples in tuples": b"N" + b"\x85" * 120_000,
    "calls": b"cx\ny\n" + b")R" * 60_000,
    "a long number": b"\x8b\xff\xff\xff\x7f",
    "a long number in digits": b"I" + b"9" * 5_000 + b"\n",
    "a long text": b"\x8d" + b"\xff" * 7 + b"\x0f" + b"x",
    "long bytes": b"\x8e" + b"\xff" * 8,
    "a long frame": b"\x95" + b"\xff" * 8 + b"N0" * 10,
    "keys that collide": b"}(" + colliding("I%d\nN", 40_000) + b"u",
    "places that collide": b"N" + colliding("p%d\n", 40_000),
    "a module named by tuples of tuples": b"N" + b"2\x86" * 40 + b"\x8c\x01x\x93",
    "copies of a list": b"]q\x00(" + b"(NNl" * 20_000 + b"ecollections\nOrderedDict\n" + b"2h\x00\x85R0" * 5_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_every_bomb_ends_soon(name, monkeypatch):
    """Without bounds most of these are hours, or all memory."""
    monkeypatch.setattr(inert_pickles, "MAX_PICKLE_STEPS", 100_000)
    with suppress(InvalidPickleError):
        described(BOMBS[name])


def test_a_pickle_of_too_many_steps_is_refused(monkeypatch):
    monkeypatch.setattr(inert_pickles, "MAX_PICKLE_STEPS", 1000)
    with pytest.raises(InvalidPickleError, match="more than 1,000 steps"):
        described(b"N0" * 600)


def test_a_file_whose_tensors_would_take_many_times_its_size_is_bounded_before_they_are_read(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({f"t{number}": torch.zeros(1).expand(1 << 24) for number in range(100)}, path)
    assert path.stat().st_size < 100_000

    with open_checkpoint(path, suspect=True) as checkpoint:
        assert sum(info.nbytes for info in checkpoint.tensors.values()) <= limits.MAX_EXPANSION + 10 * (1 << 20)
        assert "larger than its file" in checkpoint.left_out.values()
    assert "larger than its file" in refused(open_checkpoint, path)


def test_a_zip_that_unpacks_to_many_times_its_size_is_refused_before_it_is_unpacked(tmp_path):
    buffer = io.BytesIO()
    torch.save({"zeros": torch.zeros(1 << 23)}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))

    assert "many times its size" in refused(open_checkpoint, tmp_path / "x.pth")


def test_a_compressed_zip_is_read(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": GOOD, "b": torch.zeros(1000)}, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))

    with open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert checkpoint.read(checkpoint.tensors["a"]).tobytes() == GOOD.numpy().tobytes()
        assert len(digest_tensors(checkpoint)) == 2


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_two_members_of_one_name_is_refused(tmp_path):
    path = with_tensor(tmp_path / "x.pth")
    with zipfile.ZipFile(path, "a") as target:
        target.writestr(target.namelist()[0], b"other")

    assert "two members" in refused(open_checkpoint, path)
