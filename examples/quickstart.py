"""Issues a marked copy of EfficientNet-Lite0 to each of two recipients, then finds out whose copy leaked.

python -m examples.quickstart     # 20 seconds on two cores; writes quickstart_output/
"""

from pathlib import Path

from examples._common.real_inputs import lite0, save_timm
from hf_fingerprint import FingerprintConfig, Vault, issue, trace


def main(out: Path = Path("quickstart_output")) -> list[str]:
    """Returns the names of the recipients whom the trace accuses."""
    base = save_timm(lite0(), out / "base")  # your own model: a folder, a .safetensors file or a Hub id
    vault = Vault.create(out / "vault", passphrase="choose your own")
    issue(base, "alice", vault, out / "alice", FingerprintConfig(calibration_images=100))
    issue(base, "bob", vault, out / "bob")

    vault.unlock("choose your own")
    result = trace(out / "bob", vault)
    for accused in result.accused:
        print(f"{accused.recipient}: score {accused.score:.0f}, p <= 10^{accused.log10_false_accusation:.0f}")
    return [accused.recipient for accused in result.accused]


if __name__ == "__main__":
    main()
