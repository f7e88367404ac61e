"""The callback over two processes: DDP, FSDP2 and DeepSpeed's ZeRO 1, 2 and 3, all with the Trainer on CPUs, against
a reference loss.

FSDP2 on CPUs needs a patch of accelerate (`enable_fsdp_on_cpu`). The ViT's 45 and 91 rows make uneven
shards. DeepSpeed uses the Trainer's own optimizer here, not its compiled fused CPU Adam.
"""

from types import SimpleNamespace

import pytest
from transformers import AutoModelForImageClassification

from tests.helpers.small_models import new_vault
from tests.helpers.training_runs import (
    difference,
    gather_weights,
    launch,
    register_base,
    relative_drift,
    save_transformer,
)


pytestmark = pytest.mark.integration
WINDOWS = {"gradient_accumulation_steps": 3}
BITES = WINDOWS | {"max_grad_norm": 0.05, "learning_rate": 0.05}
FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": "ViTLayer"}}
PARALLEL = {
    "DDP": {},
    "DDP, accumulation": WINDOWS,
    "DDP, clipping that bites": BITES,
    "DDP, unused parameters looked for": WINDOWS | {"ddp_find_unused_parameters": True},
    "DDP, mark put in": WINDOWS | {"embed": True},
    "DDP, half frozen": WINDOWS | {"freeze": 1},
    "FSDP2, half frozen": WINDOWS | FSDP2 | {"freeze": 1},
    "FSDP2, accumulation": WINDOWS | FSDP2,
    "FSDP2, clipping that bites": BITES | FSDP2,
    "FSDP2, mark put in": WINDOWS | FSDP2 | {"embed": True},
}


def zero(stage, **more):
    config = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    config |= {"zero_force_ds_cpu_optimizer": False, "train_micro_batch_size_per_gpu": "auto"}
    config |= {"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}
    return {"deepspeed": config | more, "use_cpu": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A registered ViT, and what its loss written by hand makes of it in two processes without DeepSpeed."""
    root = tmp_path_factory.mktemp("processes")
    model = save_transformer(root / "model")
    register_base(model, new_vault(root / "vault"))
    begin = gather_weights(AutoModelForImageClassification.from_pretrained(model))
    return SimpleNamespace(root=root, begin=begin, job={"folder": model, "vault": root / "vault"})


@pytest.fixture(scope="module")
def parallel(base):
    """What two processes end with."""
    cases = [{"how": "plain"} | WINDOWS]  # FSDP is last: the Trainer leaves it switched on in the environment
    cases += [{"how": how} | options for options in PARALLEL.values() for how in ("callback", "by hand")]
    same = {"embed", "freeze"}  # by hand these are compared with DDP's
    jobs = [base.job | case for case in cases if not (case["how"] == "by hand" and "fsdp" in case and same & {*case})]
    weights = launch(jobs, base.root / "parallel", 2, ACCELERATE_USE_CPU="true")
    return {_key(job): result for job, result in zip(jobs, weights, strict=True)}


@pytest.fixture(scope="module")
def partitioned(base):
    """What DeepSpeed ends with on two processes."""
    jobs = [
        base.job | case
        for case in (
            {"how": "callback"} | zero(2) | WINDOWS,
            {"how": "callback"} | zero(1) | BITES,
            {"how": "callback"} | zero(2) | BITES,
            {"how": "trainer"} | zero(3) | WINDOWS,
            {"how": "trainer"} | zero(3) | BITES,
            {"how": "trainer", "freeze": 1} | zero(3) | WINDOWS,
            {"how": "callback"} | zero(3),
            {"how": "callback", "embed": True} | zero(2),
            {"how": "by hand"} | zero(2) | WINDOWS,
            {"how": "by hand"} | zero(2) | BITES,
            {"how": "by hand", "freeze": 1} | zero(2) | WINDOWS,
        )
    ]
    return launch(jobs, base.root / "two", 2, DS_ACCELERATOR="cpu")


def _key(job):
    return repr([job["how"], {k: v for k, v in job.items() if k not in ("folder", "vault", "how")}])


# one test for each launch, which is what takes the time: with several workers, each would launch its own


def test_processes_end_where_the_loss_written_by_hand_takes_them(base, parallel):
    for case, options in PARALLEL.items():
        same = case in ("FSDP2, mark put in", "FSDP2, half frozen")
        by_hand = PARALLEL[case.replace("FSDP2", "DDP")] if same else options
        called, written = parallel[_key({"how": "callback"} | options)], parallel[_key({"how": "by hand"} | by_hand)]
        assert difference(called, written) <= 1e-6, case
        assert relative_drift(called, written, base.begin) <= 5e-5, case

    written = parallel[_key({"how": "by hand"} | WINDOWS)]
    assert difference(parallel[_key({"how": "plain"} | WINDOWS)], written) > 1e-4, "a missing term isn't seen"
    assert difference(parallel[_key({"how": "by hand"})], written) > 1e-4, "other windows aren't seen"


@pytest.mark.slow
def test_zero_ends_where_the_loss_written_by_hand_takes_it_or_is_refused(base, partitioned):
    two, one_bites, two_bites, three, three_bites, three_frozen, alone, put_in, usual, clipped, frozen = partitioned

    for called, written in (
        (two, usual),
        (three, usual),
        (one_bites, clipped),
        (two_bites, clipped),
        (three_bites, clipped),
        (three_frozen, frozen),
    ):
        assert difference(called, written) <= 1e-6
        assert relative_drift(called, written, base.begin) <= 5e-5
    assert alone == (
        "The model is partitioned by ZeRO-3, where a callback alone can't train the mark: use "
        "FingerprintTrainer or FingerprintTrainerMixin."
    )
    assert put_in.startswith(
        "DeepSpeed keeps its own copy of the weights, so the mark can't be embedded before training: "
    )
