from types import SimpleNamespace

import pytest
import torch

from hf_fingerprint.models import to_device


@pytest.mark.parametrize(
    ("device", "alone", "launched"),
    [
        ("cuda", "cuda", "cuda:1"),
        (torch.device("cuda"), "cuda", "cuda:1"),
        ("cuda:0", "cuda:0", "cuda:0"),
        ("cpu",) * 3,
    ],
)
def test_a_launched_process_moves_things_to_its_own_device(monkeypatch, device, alone, launched):
    value = SimpleNamespace(to=lambda place: place)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    assert to_device(value, device) == torch.device(alone)
    for name, number in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, number)
    assert to_device(value, device) == torch.device(launched)
