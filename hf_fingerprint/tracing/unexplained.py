"""What a suspect holds besides the weights that clear it: "nobody" only if that can't hold most of a copy.

It may stand in the same file as the base, or in another file of the suspect.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from hf_fingerprint.checkpoints import Checkpoint
from hf_fingerprint.extraction import Extraction
from hf_fingerprint.outcomes import Outcome
from hf_fingerprint.tracing.readability import MAX_LISTED, fitting_weights
from hf_fingerprint.tracing.result import TraceResult
from hf_fingerprint.vault import Base


MIN_SHOWN_SHARE = 0.5  # of the weights that may be a copy's: those that are similar to the base's
EACH_HINT = "Trace each file by itself to see which of them are other models."


class Unexplained(NamedTuple):
    """What a suspect holds besides the weights that are similar to the base's.

    Attributes:
        tensors ([`Checkpoint`] or `None`): tensors that were compared with no carrier, if all were sought.
        dissimilar (`int`): weights that other passes over the suspect compared, and that are not similar.
    """

    tensors: Checkpoint | None = None
    dissimilar: int = 0

    def count(self, base: Base) -> int:
        """How many weights of a base's copy this may be, by shapes."""
        return self.dissimilar + (0 if self.tensors is None else fitting_weights(base, self.tensors))


ALL_EXPLAINED = Unexplained()


class ClearedWeights(NamedTuple):
    """The weights of one base in which no copy shows, although it would.

    Attributes:
        base ([`Base`]): the base.
        similar (`int`): the weights that are similar to its own.
        rest (`int`): the weights next to them that are not, and may be a copy's by their shapes.
    """

    base: Base
    similar: int
    rest: int

    @classmethod
    def of(cls, base: Base, extraction: Extraction, unexplained: Unexplained) -> "ClearedWeights":
        """The weights of one extraction, and what else the suspect holds."""
        similar = int(extraction.similar_counts.sum())
        return cls(base, similar, extraction.weights_read - similar + unexplained.count(base))

    def doubt(self, where: str = "") -> str | None:
        """Why a copy may be in the rest, and what to do; `None` if that can't hold most of one.

        A model in use has each of a copy's tensors once. Those that the rest can't hold would be among the similar
        ones, and show the copy. So the rest first fills the places of the carriers that are not similar or missing.
        """
        missing = self.base.carrier_weights - self.similar
        shown = self.similar - max(0, self.rest - missing)
        if shown >= MIN_SHOWN_SHARE * (self.similar + min(self.rest, missing)):
            return None
        return (
            f"No copy shows in the {self.similar:,} weights that are similar to those of base {self.base.base_id}, "
            f"but {self.rest:,} others{where} have the shapes of its marked tensors and may be a copy's in another "
            f"order: give the base's whole folder, so that both models can be run to find the order, or get the "
            f"model with its channels in the base's order."
        )


class TracedSet(NamedTuple):
    """One of a suspect's sets of weight files, traced by itself.

    Attributes:
        result ([`TraceResult`]): the result.
        cleared (sequence of [`ClearedWeights`]): what the outcome "nobody" clears, base by base.
        unexplained ([`Unexplained`]): all that is not similar to a base's.
    """

    result: TraceResult
    cleared: Sequence[ClearedWeights]
    unexplained: Unexplained


def conclude_sets(sets: Sequence[TracedSet]) -> list[TraceResult]:
    """The results of a suspect's sets of weight files, in which "nobody" allows for what the other sets hold."""
    bases = {cleared.base.base_id: cleared.base for each in sets for cleared in each.cleared}
    held = {base_id: [each.unexplained.count(base) for each in sets] for base_id, base in bases.items()}
    results = []
    for number, (result, all_cleared, _) in enumerate(sets):
        for cleared in all_cleared if result.outcome is Outcome.NOBODY else ():
            others = {i: n for i, n in enumerate(held[cleared.base.base_id]) if n and i != number}
            files = [name for i in others for name in sets[i].result.files][:MAX_LISTED]
            joined = cleared._replace(rest=cleared.rest + sum(others.values()))
            if others and (doubt := joined.doubt(f" ({', '.join(files)})")) is not None:
                result = replace(result, outcome=Outcome.NOT_READABLE, reason=f"{doubt} {EACH_HINT}")
                break
        results.append(result)
    return results
