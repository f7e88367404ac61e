"""A hostile colleague's vault, in more than two hundred kinds, merged from a folder and from a pack.

    python examples/bench_hostile_merges.py

Of each: nothing enters that does not verify, the bad row is named, the other folder is not written to, nothing ends in
an unexpected error, and a copy that came with it is traced to its recipient.
"""

import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile_vault_kinds import KINDS
from hostile_vaults import GOOD, as_folder, as_pack, changed, check_merge, make_world
from small_models import PASSPHRASE

from hf_fingerprint import Vault, trace


LONGEST = 10.0  # seconds


def main() -> None:
    """Prints what became of each kind, and the totals."""
    ended: Counter[str] = Counter()
    slowest, traced = (0.0, ""), 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        world = make_world(root / "world")
        for number, name in enumerate(KINDS):
            for read in (as_folder, as_pack):
                here = root / f"{number} {read.__name__}"
                folder, mine = (
                    changed(KINDS[name], world, here / "theirs"),
                    Vault(shutil.copytree(world.root / "mine", here / "mine")),
                )
                begin = time.perf_counter()
                report = check_merge(world, mine, folder, KINDS[name], read)
                seconds = time.perf_counter() - begin
                slowest = max(slowest, (seconds, f"{name}, {read.__name__}"))
                assert seconds < LONGEST, f"{name} took {seconds:.1f} s"
                ended["refused whole" if report is None else "refused by name" if report.refused else "taken"] += 1
                if report is not None and report.copies:
                    mine.unlock(PASSPHRASE)
                    result = trace(world.root / "copies" / GOOD[number % 2], mine)
                    assert [score.recipient for score in result.accused] == [GOOD[number % 2]], name
                    traced += 1
                shutil.rmtree(here)
    for how, count in ended.items():
        print(f"{how}: {count}")
    print(f"{len(KINDS)} kinds, each as a folder and as a pack; {traced} traces, all of them to the right recipient")
    print(f"slowest: {slowest[0]:.2f} s ({slowest[1]})")


if __name__ == "__main__":
    main()
