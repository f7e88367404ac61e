import re

import pytest

from hf_fingerprint.blackbox import check_proof
from tests.helpers.processes import run_here


pytestmark = pytest.mark.docs
QUICK = ["--model", "test_efficientnet", "--data", "digits", "--size", "32", "--steps", "80", "--rate", "500"]
FEW = ["--count", "60", "--decoys", "4", "--trigger-steps", "12"]


def test_copies_behind_a_service_are_accused_and_an_independent_model_is_not(tmp_path):
    out = tmp_path / "out"
    printed = " ".join(run_here("api_tracing", tmp_path, "--out", out, *QUICK, *FEW)[0].split())
    assert printed.count("ACCUSED") == 2
    assert "accused: the copy made for alice (" in printed.partition("/service-2")[0]
    assert "accused: the copy made for bob (" in printed.partition("/service-2")[2]
    independent = printed.partition("/service-3")[2]
    assert "nobody is accused. 5 copies tested" in independent
    assert "stopped at the last image, after 64 images" in independent
    kept = [float(share) for share in re.findall(r": accuracy [\d.]+%, ([\d.]+)% of the base's labels", printed)]
    assert len(kept) == 5
    assert min(kept) >= 95
    assert printed.count("the proof is consistent: responses of http://127.0.0.1:") == 2
    assert printed.count("the proof holds for the published commitments") == 2
    for name in ("alice", "bob"):
        (proven,) = check_proof(out / f"{name}.proof.json").accusations
        assert proven.holds
        assert proven.recipient == name
        assert proven.log10_bound <= -6
    assert sorted(path.name for path in out.glob("*.transcript")) == [
        f"{n}.transcript" for n in ("alice", "bob", "nobody")
    ]
    assert not (out / "nobody.proof.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
