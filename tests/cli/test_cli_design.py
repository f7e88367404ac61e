import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_fingerprint.cli.design_command import MODELS


ARGUMENTS = ["design", "--expected-recipients", "10", "--coalition", "2", "--drift", "1", "--strategy", "average"]


def test_a_design_names_code_weights_scores_and_models(run):
    code, out, _ = run(*ARGUMENTS)
    assert code == 0
    said = " ".join(out.split())
    assert said.startswith("best for 2 colluders among 10 recipients") and "carrier weights or more" in said
    assert "accuses at" in said
    assert [len(line.split()) for line in out.splitlines() if line.startswith("average")] == [1 + 3]
    found = {line.split()[0]: line for line in out.splitlines() if line}
    assert all(found[name].rstrip().endswith("large enough") for name in MODELS)


def test_a_model_of_ones_own_is_counted_without_stem_and_classifier(run, tmp_path):
    weights = {
        "stem.weight": (8, 3, 3, 3),
        "blocks.0.weight": (16, 8, 3, 3),
        "head.weight": (10, 16),
        "norm.weight": (8,),
    }
    save_file({name: np.ones(shape, np.float32) for name, shape in weights.items()}, tmp_path / "small.safetensors")
    code, out, _ = run(*ARGUMENTS, "--model", tmp_path / "small.safetensors")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.rstrip().endswith("too small")]
    assert line.split()[-3] == f"{16 * 8 * 9:,}"
    assert "small.safetensors" in "".join(line.partition(" ")[0] for line in out.splitlines())


def test_json_has_the_same(run):
    code, out, _ = run(*ARGUMENTS, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["recipients"], found["coalition"], found["alpha"], found["drift"]) == (10, 2, 1e-6, 1.0)
    assert {option["family"] for option in found["options"]} == {"fair_signs", "tardos", "nuida"}
    assert len(found["models"]) == len(MODELS)
    assert all(model["enough"] for model in found["models"])


def test_what_no_code_withstands_is_said(run):
    code, out, _ = run(*ARGUMENTS[:5], "--drift", "1e9", "--strategy", "average")
    assert code == 0
    assert out.startswith("no code catches all of 2 colluders")
    assert "large enough" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--expected-recipients", "10", "--coalition", "11"], "recipients, 10, got 11"),
        (["--expected-recipients", "10", "--coalition", "2", "--strategy", "tie-dye"], "tie-dye"),
        (["--expected-recipients", "10", "--coalition", "2", "--alpha", "0.9"], "at most 0.05, got 0.9"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_code_2(run, arguments, said):
    code, out, err = run("design", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])
def test_the_table_of_models_is_counted_from_them(name):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    from hf_fingerprint.carriers import select_by_name
    from hf_fingerprint.checkpoints import TensorInfo

    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    tensors = {key: TensorInfo(key, "F32", tuple(t.shape), 0, 0, 4 * t.numel()) for key, t in state.items()}
    counted = sum(state[carrier].numel() for carrier in select_by_name(tensors))
    assert MODELS[name] == pytest.approx(counted / 1e6, abs=0.06)
