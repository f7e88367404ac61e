"""Merges all kinds of hostile vaults, each from a folder and from a pack.

    python -m examples.benchmarks.hostile_merges

For each kind: no row enters that does not verify, the bad row is named, the other folder stays unchanged, no
unexpected error occurs, and a merged copy is traced to its recipient.
"""

import argparse
import shutil
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from examples._common.results import Figure, add_results_option, figure_table, report
from hf_fingerprint import Vault, trace
from hf_fingerprint.errors import FingerprintWarning
from tests.helpers.hostile_vault_kinds import KINDS
from tests.helpers.hostile_vaults import GOOD, changed, check_merge, entry_points, make_world
from tests.helpers.small_models import PASSPHRASE


LONGEST = 10.0  # seconds


def main() -> None:
    """Merges all kinds and prints the totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_results_option(parser)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FingerprintWarning)  # the tests' identities have a low work factor
    ended: Counter[str] = Counter()
    slowest, traced = (0.0, ""), 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        world = make_world(root / "world")
        for number, name in enumerate(KINDS):
            folder = changed(KINDS[name], world, root / "theirs")
            for entry_point, read in entry_points(folder, world).items():
                mine = Vault(shutil.copytree(world.root / "mine", root / "mine"))
                begin = time.perf_counter()
                merged = check_merge(world, mine, folder, KINDS[name], read)
                seconds = time.perf_counter() - begin
                slowest = max(slowest, (seconds, f"{name}, as a {entry_point}"))
                assert seconds < LONGEST, f"{name} took {seconds:.1f} s"
                ended["refused whole" if merged is None else "refused by name" if merged.refused else "accepted"] += 1
                if merged is not None and not KINDS[name].loses_all:
                    mine.unlock(PASSPHRASE)
                    leaker = GOOD[number % 2]
                    result = trace(world.root / "copies" / leaker, mine)
                    assert [score.recipient for score in result.accused] == [leaker], name
                    traced += 1
                shutil.rmtree(mine.folder)
            shutil.rmtree(folder)
    counts = ", ".join(f"{count} {how}" for how, count in ended.items())
    measured = f"{counts}; {traced} of {traced} traces right; slowest {slowest[0]:.1f} s ({slowest[1]})"
    what = f"{len(KINDS)} kinds of hostile vaults, each as a folder and as a pack"
    report(arguments, [figure_table([Figure(what, measured, "nothing enters that does not verify")])])


if __name__ == "__main__":
    main()
