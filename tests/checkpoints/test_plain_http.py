import pytest
from huggingface_hub import constants

from hf_fingerprint.checkpoints.hub_client import hub_errors
from hf_fingerprint.errors import FingerprintWarning
from hf_fingerprint.hub.api import translate_errors


# every call to the Hub runs within one of these two
WAYS = [lambda: hub_errors("org/name", None), lambda: translate_errors("org/name")]


@pytest.mark.parametrize("entered", WAYS, ids=["reading", "publishing"])
@pytest.mark.parametrize(
    ("endpoint", "token", "warned"),
    [
        ("http://hub.example", "hf_sesame", True),
        ("http://hub.example", None, False),
        ("https://hub.example", "hf_sesame", False),
        ("http://127.0.0.1:8000", "hf_sesame", False),
    ],
)
def test_a_hub_token_over_plain_http_raises_a_warning_before_anything_is_sent(
    entered, endpoint, token, warned, monkeypatch, recwarn, tmp_path
):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with entered():
        said = [str(warning.message) for warning in recwarn if warning.category is FingerprintWarning]

    assert len(said) == warned
    assert all("http://hub.example goes over plain http" in each and "sesame" not in each for each in said)
