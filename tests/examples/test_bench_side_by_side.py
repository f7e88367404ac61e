import re

import pytest

from examples._common.results import Results
from examples.benchmarks import side_by_side
from examples.benchmarks import side_by_side_report as made
from tests.helpers.processes import run_here


pytestmark = pytest.mark.integration

# Checkouts with the signatures of the public code, and nothing else of it.
TATTOOED = {
    "config/config.yaml": """
watermark: {seed: 42, ldpc_seed: 8, parameter_seed: 43, ratio: 0.5, error_correction: true,
            embed_path: marks/mark.txt, gamma: 0.125}
""",
    "marks/mark.txt": "ten bytes.",
    "watermark/__init__.py": "from pytorch_lightning import Callback\nfrom watermark.watermark import Watermark\n",
    "watermark/watermark.py": """
class Watermark:
    def __init__(self, seed, ldpc_seed, parameter_seed, ratio, device, error_correction, watermark_path, result_path,
                 logger):
        assert (seed, ldpc_seed, parameter_seed, ratio, device, error_correction) == (42, 8, 43, 0.5, "cpu", True)
        assert result_path.is_dir()
        self.message = [0] * 8 * len(watermark_path.read_bytes())

    def embed(self, model, gamma=None):
        state = model.state_dict()
        name = next(iter(state))
        state[name] = state[name] + gamma
        self.marked = state[name].clone()
        print("what it prints does not get between the responses")
        return state

    def extract(self, model):
        return bool((next(iter(model.state_dict().values())) == self.marked).all())
""",
}
TOOLBOX = {
    "configs/cifar10/wm_configs/deepmarks.yaml": """
wm_scheme: {name: wm_deepmarks, layer_index: 0, gamma: 10, num_classes: 10}
embed: {epochs: 60, keylength: 20, check_every_n_batches: 200, patience: 5}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9, nesterov: true}
dataset: {batch_size: 32}
""",
    "configs/cifar10/train_configs/resnet.yaml": "scheduler: {name: MultiStepLR, milestones: [1, 2], gamma: 0.1}\n",
    "wrt/__init__.py": "raise ImportError('this imports every attack')\n",
    "wrt/defenses/__init__.py": "from backdoor import *\n",
    "wrt/classifiers/__init__.py": """
class PyTorchClassifier:
    def __init__(self, model, loss, optimizer, input_shape, nb_classes, clip_values=None, device_type="gpu"):
        assert (input_shape, nb_classes, clip_values, device_type) == ((3, 32, 32), 10, (0, 1), "cpu")
        self.model, self.loss, self.optimizer = model, loss, optimizer
""",
    "wrt/defenses/watermark/deepmarks.py": """
import numpy as np
import torch

class Deepmarks:
    def __init__(self, classifier, layer_index=0, gamma=0.1):
        assert gamma == 10 and abs(classifier.optimizer.param_groups[0]["lr"] - 0.001) < 1e-9
        self.classifier = classifier

    def embed(self, train_loader, valid_loader, keylength, signature=None, epochs=5, patience=5,
              check_every_n_batches=100, device="cuda"):
        assert (len(signature), epochs, patience, check_every_n_batches, device) == (keylength, 1, 5, 200, "cpu")
        for images, labels in train_loader:
            self.classifier.optimizer.zero_grad()
            self.classifier.loss(self.classifier.model(images), labels).backward()
            self.classifier.optimizer.step()
        weight = next(self.classifier.model.parameters())
        weight.data.view(-1)[:keylength] = torch.from_numpy(signature)
        key = np.arange(keylength)
        return key, self.extract(key)

    def extract(self, x, classifier=None):
        found = next((classifier or self.classifier).model.parameters()).detach().flatten()[x].numpy()
        return found / np.linalg.norm(found)

    def verify(self, x, y_wm=None, classifier=None):
        score = float(self.extract(x, classifier) @ y_wm)
        return score, score > 0
""",
}


def checkout(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def measured(issue, embedding, name, extract):
    each = made.Measured(8, issue=issue, embedding=embedding)
    for took in extract:
        each.add_extraction(name, took, took < 9)
    return each


def test_all_three_run_by_turns_on_checkouts_with_the_published_signatures(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "cpu_count", lambda: 1)
    monkeypatch.setattr(side_by_side, "TEST_IMAGES", 64)
    file = tmp_path / "results.json"
    arguments = ["--tattooed", checkout(tmp_path / "one", TATTOOED), "--toolbox", checkout(tmp_path / "two", TOOLBOX)]
    arguments += ["--architecture", "test_resnet", "--pairs", 2, "--epochs", 1, "--images", 64]

    run_here("benchmarks.side_by_side", tmp_path, *arguments, "--training-steps", 2, "--results", file)

    ratios, schemes = Results.read(file).tables
    rows = {row[0]: dict(zip(schemes.columns, row, strict=True)) for row in schemes.rows}
    assert list(rows) == [made.TATTOOED, made.TOOLBOX, "ours, among 1 recipient", "ours, among 1,000 recipients"]
    assert [row["bits"] for row in rows.values()][:2] == ["80", "20"]
    assert [row["right"] for row in rows.values()] == [
        "2 of 2",
        "2 of 2, at most 0 of 20 bits wrong",
        "2 of 2",
        "2 of 2",
    ]
    assert rows[made.TATTOOED]["the unmarked base"] == "not marked"
    assert rows[made.TOOLBOX]["the unmarked base"].startswith(("marked (!)", "not marked"))
    assert {row["the unmarked base"] for row in list(rows.values())[2:]} == {"nobody is accused"}
    assert "accusing any innocent is at most 1e-06" in rows["ours, among 1 recipient"]["what extraction says"]
    assert len(ratios.rows) == 8
    below = " ".join(schemes.notes)
    assert "Each scheme has 1 thread." in below
    assert "pytorch_lightning is a stub" in below and "ratio 0.5, gamma 0.125" in below
    assert "here 2 steps" in below and f"{60 * 1042:,} steps" in below  # 33,334 images in batches of 32
    assert str(tmp_path) not in file.read_text()


def test_ratios_are_medians_of_pairs_and_a_copy_must_be_issued_ten_times_as_fast():
    ours = measured([0.1, 0.2, 0.1], [], made.among(1), [1.0, 2.0, 4.0])
    quick = measured([0.9, 0.8, 0.7], [0.5, 0.5, 0.5], made.TATTOOED, [2.0, 2.0, 2.0])
    slow = measured([900.0, 8.0, 7.0], [8.0, 7.0, 6.0], made.TOOLBOX, [0.01, 0.01, 0.01])

    rows = [row[1:] for row in made.ratio_table({made.TATTOOED: quick, made.TOOLBOX: slow}, ours).rows]

    assert rows == [
        ("7 (4 - 9) (!)", ">= 10"),
        ("5 (2.5 - 5)", "reported"),
        ("1 (0.5 - 2)", "reported"),
        ("70 (40 - 9,000)", ">= 10"),
        ("60 (35 - 80)", "reported"),
        ("0.005 (0.0025 - 0.01)", "reported"),
    ]


def test_the_table_of_schemes_has_medians_and_counts_what_was_right():
    theirs = measured([3.0, 1.0, 2.0], [0.5, 0.25, 1.0], made.TATTOOED, [5.0, 10.0, 6.0])
    theirs.accuracy, theirs.of_base = 0.5, "not marked"

    (row,) = made.schemes_table({made.TATTOOED: theirs}, 1e-6, ["A note."]).rows

    assert row[:-1] == (made.TATTOOED, "8", "2", "0.5", "6", "2 of 3", "not marked", "50.0%")
    assert "no probability" in row[-1]


def test_a_folder_that_is_no_checkout_gets_one_sentence_and_a_commit_only_of_its_own(tmp_path):
    with pytest.raises(SystemExit, match="clone the repository of TATTOOED, and give its path") as stopped:
        side_by_side.check_checkout(made.TATTOOED, tmp_path)

    assert re.fullmatch(r"\S+ has no watermark/watermark\.py: [^.]+\.", str(stopped.value.code))
    assert side_by_side.check_checkout(made.TATTOOED, checkout(tmp_path, TATTOOED)) == "unknown"


def test_public_code_that_does_not_import_is_one_sentence_with_what_to_install(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named pyldpc' >&2\nexit 1\n")
    python.chmod(0o755)

    with (
        side_by_side.PublicScheme(made.TATTOOED, tmp_path, {}, python, tmp_path) as scheme,
        pytest.raises(
            SystemExit, match=r"^TATTOOED: ModuleNotFoundError: .* pyldpc\. Install .*public_code\.txt"
        ) as got,
    ):
        scheme.open()

    assert str(tmp_path) not in str(got.value)
