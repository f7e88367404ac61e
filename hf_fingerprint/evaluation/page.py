"""The evaluation's HTML page: a summary, five figures and the tables, in one file that loads nothing else."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fingerprint.evaluation import figures
from hf_fingerprint.evaluation.evaluate import Evaluation
from hf_fingerprint.evaluation.frontier import AttackCost
from hf_fingerprint.printable import printable
from hf_fingerprint.tables import Table


if TYPE_CHECKING:
    from jinja2 import Template

NOT_TO_PUBLISH = (
    "Scores of recipients who are not accused help an attacker to build a suspect that accuses one of them: do not "
    "publish this evaluation."
)


def render(
    evaluation: Evaluation, costs: Sequence[AttackCost], summary: dict[str, Any], tables: Sequence[Table]
) -> str:
    """The page as HTML, from each attack's cost, cheapest first, [`summarize`]'s result, and the
    tables."""
    from markupsafe import Markup

    drawn = {
        "attacks": [(name, Markup(svg)) for name, svg in figures.draw_attacks(evaluation)],
        "frontier": Markup(figures.draw_frontier(evaluation)),
        "coalitions": [(name, Markup(svg)) for name, svg in figures.draw_coalitions(evaluation)],
        "innocents": Markup(figures.draw_innocents(evaluation)) if evaluation.all_scores else None,
        "layers": Markup(figures.draw_layers(evaluation)),
    }
    return _template().render(
        drawn=drawn,
        banner=NOT_TO_PUBLISH if evaluation.all_scores else None,
        costs=costs,
        summary=summary,
        tables=tables,
        follow_ups=figures.follow_ups(evaluation),
        lost=[cost for cost in costs if cost.loss is not None],
        kept=[cost for cost in costs if cost.loss is None],
        error=(evaluation.copy.accuracy * (1 - evaluation.copy.accuracy) / evaluation.images) ** 0.5,
        percent=lambda share: f"{share:.1%}".replace("%", " %"),
    )


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    kept = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # Markup passes unchanged
    )
    return kept.from_string(text)
