import json
from dataclasses import replace

import pytest
from rich.progress import Progress

from examples._common.real_inputs import FASHION_MNIST
from examples.benchmarks import privacy as bench_privacy


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_each_training_is_measured_once_and_what_was_measured_is_kept(tmp_path):
    small = replace(
        bench_privacy.SETTINGS["small"],
        public=400, private=600, labeled_count=300, test=300, base_steps=4, steps=12, student_steps=12, denoising=12,
        attack_steps=12, strengths=(1.0,), share=0.95,
    )  # fmt: skip
    path = tmp_path / "small.json"

    with Progress(disable=True) as progress:
        rows = bench_privacy.run(small, path, progress)

    names = ["the owner's images alone", "plain split", "the label alone", "partitioned, noise x 1"]
    assert [row.name for row in rows] == [row["name"] for row in json.loads(path.read_text())["rows"]] == names
    own, plain, label, partitioned = rows
    assert own.ssim is None and label.accuracy is None and plain.sigma is None
    assert partitioned.bits > 0 and 0 < partitioned.ssim < 1 and 0.3 < partitioned.membership_auc < 0.7
    table = bench_privacy.table_of("small", "a small network", rows)
    assert [row[0] for row in table.rows] == names
    assert (table.rows[1][6], table.rows[2][3]) == ("1.00", "-")

    before = path.read_text()
    with Progress(disable=True) as progress:
        again = bench_privacy.run(small, path, progress)
    assert again == rows and path.read_text() == before
