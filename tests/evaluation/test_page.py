import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hf_fingerprint.evaluation import write_report
from hf_fingerprint.evaluation.trials import COLLUSION


pytestmark = pytest.mark.integration


PICTURES = ("attacks", "frontier", "coalitions", "innocents", "layers")
VOID = {"meta", "br", "img", "input", "link", "hr"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>{{ 7 * 191 }}\x1b[2J\u202e'


class PageParser(HTMLParser):
    """Sees that tags are balanced, and what is in which section."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.section, self.found, self.attributes = [], [], "", {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag == "section":
            self.section = dict(attributes)["id"]
        self.found.setdefault(self.section, []).append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes
        self.found.setdefault(self.section, []).append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(evaluation, folder):
    return write_report(evaluation, folder).page


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    """The small evaluation's."""
    return page_of(evaluation, tmp_path_factory.mktemp("page"))


def test_the_page_is_whole_and_has_every_picture(page, evaluation):
    reader = PageParser(page.read_text())

    assert reader.open == []
    assert set(PICTURES) < reader.found.keys()
    assert reader.found["attacks"].count("figure") == len(evaluation.sweeps)
    assert reader.found["coalitions"].count("figure") == 1
    for name in ("frontier", "innocents", "layers"):
        assert reader.found[name].count("figure") == reader.found[name].count("svg") == 1
    assert reader.found["frontier"].count("circle") == len(evaluation.trials) - 1
    assert reader.found["layers"].count("rect") == len(evaluation.carriers) * reader.found["layers"].count("text") - (
        len(evaluation.carriers)
    )


def test_the_page_loads_nothing(page):
    text = page.read_text()
    reader = PageParser(text)

    assert not re.search(r"https?:|//|@import|url\(", text.removeprefix("<!DOCTYPE html>"))
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.seen)
    assert not [name for name, _ in reader.attributes if name in ("src", "href") or name.startswith("on")]


def test_every_dot_says_what_it_is(page):
    pictures = re.findall(r"<svg viewBox=\"0 0 [3-9].*?</svg>", page.read_text(), re.DOTALL)
    drawn = [ElementTree.fromstring(text) for text in pictures]

    assert len(drawn) >= 4
    for svg in drawn:
        for mark in [*svg.iter("circle"), *svg.iter("rect")]:
            assert mark.find("title").text


def test_the_figures_are_those_that_were_measured(page, evaluation):
    text = " ".join(page.read_text().split())

    assert f"<b>{evaluation.copy.accuracy:.1%}</b>".replace("%", " %") in text
    assert "<b>2 of 2</b><span>colluders caught" in text
    assert f"among 4 recipients, the probability that any innocent one scores as high is at most {1e-6:g}" in text
    assert f"The highest score of an innocent was {max(p.highest_innocent for p in evaluation.trials):.1f}" in text
    assert "No innocent was accused." in text


def test_outcomes_of_coalitions_are_listed_by_strategy_and_size(page):
    text = page.read_text()

    assert "1 coalitions, by their runs" in text
    assert "<td>average</td><td>2</td><td>1</td><td>1</td><td>1</td><td>2 of 2</td>" in text


def test_suspects_of_which_nobody_is_accused_are_drawn_at_the_bound_without_their_score(evaluation, tmp_path):
    (pruned,) = [replace(p, caught=(False,), scores=(3.21,)) for p in evaluation.sweeps["half"]]
    trials = (*evaluation.trials[:2], pruned)
    text = page_of(replace(evaluation, trials=trials, all_scores=False), tmp_path).read_text()
    (svg,) = re.findall(r"<figure><h3>half</h3>(.*?)</figure>", text, re.DOTALL)
    drawn = ElementTree.fromstring(svg)
    (dot,) = [mark for mark in drawn.iter("circle") if mark.get("class") == "escaped"]
    (bound,) = [line for group in drawn.iter("g") if group.get("class") == "bound" for line in group.iter("line")]

    assert dot.get("cx") == bound.get("x1")
    assert dot.find("title").text.endswith("score below the bound, nobody is accused")
    assert "<td>below the bound</td>" in text
    assert "3.2" not in svg


def test_without_all_scores_the_page_counts_innocents_and_shows_none_of_their_scores(redacted, tmp_path):
    text = page_of(redacted, tmp_path).read_text()
    reader = PageParser(text)

    assert reader.open == []
    assert reader.found["innocents"].count("svg") == 0
    assert reader.found["layers"].count("svg") == 1
    assert f"{sum(p.innocents for p in redacted.trials[1:]):,} scores of innocent recipients" in text
    assert "none reached it" in " ".join(text.split())


def test_what_was_lost_and_innocents_accused_are_said_plainly(evaluation, tmp_path):
    lost = replace(evaluation.sweeps["half"][0], caught=(False,), accuracy=0.1, innocents_accused=2)
    trials = [lost if trial.attack == "half" else trial for trial in evaluation.trials if trial.attack != "int"]
    text = page_of(replace(evaluation, trials=tuple(trials), skipped={"prune": "no weights"}), tmp_path).read_text()
    text = " ".join(text.split())

    assert "1 of 1 attacks on one copy escaped accusation. The cheapest of them, half, lost" in text
    assert "2 innocents were accused, which must not happen" in text
    assert "<li>prune: no weights</li>" in text


def test_nothing_from_outside_is_markup_or_template(evaluation, tmp_path):
    trials = tuple(replace(p, attack=p.attack + HOSTILE, what=HOSTILE) for p in evaluation.trials)
    named = replace(
        evaluation,
        model=HOSTILE,
        data=HOSTILE,
        trials=trials,
        carriers=tuple(HOSTILE for _ in evaluation.carriers),
        skipped={HOSTILE: HOSTILE},
    )
    text = page_of(named, tmp_path).read_text()
    reader = PageParser(text)

    assert reader.open == []
    assert not {"script", "img"} & set(reader.seen)
    assert "1337" not in text
    assert text.count("alert(1)") > 10
    assert not set("\x1b\u202e") & set(text)


def test_a_page_without_attacks_or_mixes_is_whole(evaluation, tmp_path):
    bare = replace(evaluation, trials=evaluation.trials[:2])
    text = page_of(bare, tmp_path).read_text()

    assert PageParser(text).open == []
    assert "No attack on a single copy was run." in text
    assert "No copies were mixed." in text
    assert not bare.of(COLLUSION)


@pytest.mark.skipif(BROWSER is None, reason="no browser on this machine")
def test_a_real_browser_shows_every_picture_without_a_complaint(page, tmp_path):
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}",
            "--enable-logging=stderr",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    reader = PageParser(done.stdout)

    assert "CONSOLE" not in done.stderr
    assert reader.found == PageParser(page.read_text()).found | {"": reader.found[""]}
