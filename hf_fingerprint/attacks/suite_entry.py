"""One attack of the suite: its strengths, and what an evaluation needs to know to plan and judge it."""

from dataclasses import dataclass

from hf_fingerprint.attacks.attack import AttackStep


ANCESTOR = "ancestor"  # the group of attacks that need the base's public ancestor


@dataclass(frozen=True)
class SuiteEntry:
    """An attack of the suite.

    Attributes:
        group (`str`): one of `GROUPS`. The attacks of `"ancestor"` need the public ancestor of the base.
        attacks (`tuple[AttackStep, ...]`): mildest first.
        stronger (`tuple[AttackStep, ...]`): further strengths, for models whose mark survives all of `attacks`.
        in_quick (`bool`): whether a quick evaluation runs it.
        control (`str` or `None`): the suite's name of the control: what an attacker without a copy's weights has after
            as many steps of training.
    """

    group: str
    attacks: tuple[AttackStep, ...]
    stronger: tuple[AttackStep, ...] = ()
    in_quick: bool = True
    control: str | None = None

    @property
    def takes_copies(self) -> bool:
        """Whether its attacks take a sequence of state dicts."""
        return self.attacks[0].takes_copies
