"""`design`: chooses a code and its length, and shows which models are too small for it."""

from typing import Annotated

from hf_fingerprint.choices import FORGERIES
from hf_fingerprint.cli import options, output
from hf_fingerprint.cli.options import option
from hf_fingerprint.config import ALPHA, COALITION, EXPECTED_RECIPIENTS, FingerprintConfig
from hf_fingerprint.tables import Table


MODELS = {  # millions of carrier weights, counted in timm 1.0.31 by the rule of `select_by_name`
    "mobilenetv3_small_100": 1.5,
    "tf_efficientnet_lite0": 3.3,
    "efficientnet_b0": 4.0,
    "mobilenetv3_large_100": 4.2,
    "deit_tiny_patch16_224": 5.3,
    "resnet18": 11.2,
    "vit_small_patch16_224": 21.2,
    "resnet50": 23.4,
    "swin_tiny_patch4_window7_224": 27.4,
    "convnext_tiny": 27.8,
    "vit_base_patch16_224": 84.9,
    "vit_large_patch16_224": 302.0,
}


def design(
    expected_recipients: options.ExpectedRecipients = None,
    coalition: options.Coalition = None,
    alpha: options.Alpha = None,
    drift: Annotated[
        float, option("--drift", "Noise in each weight, in amplitudes of the mark; fine-tuning adds about 5.", min=0)
    ] = 5.0,
    strategy: Annotated[
        list[str] | None,
        option(
            "--strategy",
            f"Collusion strategy to withstand: {', '.join(FORGERIES)}. Repeat the option for several; defaults to all "
            "distinct ones.",
            autocompletion=options.complete_from(lambda: FORGERIES),
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        option("--model", "Model whose carrier weights are counted. Repeat the option for several models."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Design a code: show its length, the weights it needs, the expected scores, and which models are too small."""
    from hf_fingerprint.codes import design_code
    from hf_fingerprint.codes.design import STRATEGIES

    counts = {name: round(millions * 1e6) for name, millions in MODELS.items()}
    counts = {name: _carrier_weights(name) for name in model or []} | counts
    FingerprintConfig(coalition=coalition, expected_recipients=expected_recipients, alpha=alpha)  # checks the numbers
    wanted = (expected_recipients or EXPECTED_RECIPIENTS, coalition or COALITION, alpha or ALPHA)
    with output.progress_bars() as progress:
        found = design_code(*wanted, drift, strategy or STRATEGIES, progress)
    needed = found.best.weights if found.best else None
    enough = {name: needed is not None and count >= needed for name, count in counts.items()}
    if as_json:
        models = [{"model": n, "carrier_weights": count, "enough": enough[n]} for n, count in counts.items()]
        output.print_json(found.to_dict() | {"models": models})
        return
    rows = ((n, f"{count:,}", "large enough" if enough[n] else "too small") for n, count in counts.items())
    output.print_blocks([*found.blocks(), Table(("model", "carrier weights", "for this code"), tuple(rows))])


def _carrier_weights(name: str) -> int:
    """The number of weights that can carry a mark, from names and shapes."""
    from hf_fingerprint.carriers import select_by_name
    from hf_fingerprint.checkpoints import open_checkpoint

    with open_checkpoint(name, weights_only=True) as checkpoint:
        tensors = checkpoint.tensors
        return sum(tensors[carrier].rows * tensors[carrier].columns for carrier in select_by_name(tensors))
