"""Options given on the command line to the settings of a registration."""

from dataclasses import replace
from pathlib import Path

from hf_fingerprint.registration import Settings


def settings_from(
    max_kl: float | None = None,
    calibration: Path | None = None,
    coalition: int | None = None,
    recipients_planned: int | None = None,
    alpha: float | None = None,
) -> Settings | None:
    """The settings that were given, or `None` if none was: a known base is then taken as it is."""
    given = {
        "max_kl": max_kl,
        "calibration": calibration,
        "coalition": coalition,
        "recipients_planned": recipients_planned,
        "alpha": alpha,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return replace(Settings(), **given) if given else None  # type: ignore[arg-type]
