"""One word for each thing, the one that the field uses: the words that are gone stay gone.

`python -m tests.test_words` prints how often each of them is left, by package.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SOURCES = ("hf_fingerprint", "tests", "examples")
TEXTS = ("*.md", "docs/**/*.md", "examples/**/*.md", "model_cards/*.md", "hf_fingerprint/**/*.html", "Makefile")

# What an identifier, a module, an option or a JSON key must not contain, and what to say instead.
WORDS = {
    "thief": "attacker",
    "thieves": "attackers",
    "theft": "attacker",
    "pirate": "colluder",
    "pirates": "colluders",
    "guilty": "colluders, attacker",
    "told": "predicted_labels, response, recall",
    "hear": "update",
    "heard": "queried, seen",
    "asked": "queried",
    "asking": "querying",
    "question": "trigger",
    "questions": "trigger_set, triggers",
    "questioning": "querying",
    "answers": "responses, trigger_labels",
    "polite": "retries",
    "politeness": "RetryPolicy",
    "patiently": "with_retries",
    "holder": "recipient (in privacy: data_holder)",
    "holders": "recipients (in privacy: data_holders)",
    "owned": "assigned",
    "unbound": "non_answering",
    "stake": "wealth, e_value",
    "promise": "commitment",
    "opener": "identity",
    "openers": "identities",
    "likeness": "similarity",
    "alike": "similar",
    "turned": "rotated",
    "dealt": "layer_wise",
    "clouds": "synthetic images",
    "judgement": "Verdict",
    "judge": "Decoder",
    "levers": "head_updates",
    "dialect": "tensor_names",
    "dialects": "tensor_names",
    "opinion": "pseudo_labels",
    "sighting": "WatchResult",
    "twin": "say what it is: a duplicate, a record of the same copy",
    "twins": "say what they are: duplicates, records of the same copy",
    "beside": "next to",
    "floor": "layer",
    "floors": "layers",
    "room": "package",
    "rooms": "packages",
    "somebody": "anybody",
    "giver": "contributor",
    "givers": "contributors",
}
PHRASES = {
    "read_suspect": "extract",
    "put_back": "align",
    "put_in_order": "align",
    "recipients_planned": "expected_recipients",
    "own_questions": "assigned triggers",
    "as_it_is": "say what stays",
}
NAMES = {
    "Settings": "FingerprintConfig",
    "Terms": "PublishConfig",
    "Reading": "Extraction",
    "Evidence": "EProcess",
    "Passing": "TransientError",
    "Then": "Compose",
    "Scene": "Testbed",
    "Point": "Trial",
    "Ledger": "ResultStore, RecordStore",
    "Lens": "FrozenSegment",
    "Reader": "Student, or say what is read",
    "covers": "cover_images",
    "TRIED": "PROBE_KEYS",
    "DOUBTS": "RIDGES",
    "Opener": "Identity",
    "advance": "progress",
    "on_step": "progress",
}
BRITISH = re.compile(
    r"(normali|regulari|quanti|summari|standardi|initiali|reali|randomi|optimi|orthonormali|generali|minimi|maximi|penali|serialis"
    r"|speciali|locali|recogni|organi|emphasi|symmetri|binari|utili|capitali|equali|parameteri|vectori|digiti|finali|authori|memori)"
    r"s(e|ed|es|er|ers|ing|ation|ations|able)$|^(re)?(behaviours?|colou?rs?|neighbours?|neighbouring|honours?|favours?|favoured|labelled|unlabelled|labelling"
    r"|cancelled|modelled|modelling|labour|centred?|centres|centring|licences?|catalogues?|artefacts?|analyse[ds]?|judgements?|grey|tyres?"
    r"|distil|fulfil|learnt|spelt|favourite|whilst|defence|metres?)$"
)
AMERICAN = re.compile(r"^colors?$")

MODULES = {
    "agreeing": "permutation_consensus",
    "asking": "querying",
    "dialects": "tensor_names",
    "extraction": "model_extraction",
    "leaning": "rotation_test",
    "pairs": "layer_pairs",
    "politeness": "retries",
    "preparing": "build",
    "questions": "triggers",
    "reading": "extraction",
    "rearranging": "weight_matching",
    "redundancy": "duplicate_units, redundant_units",
    "spreading": "optimize",
    "stream": "residual_rotation",
    "thieves": "attackers",
    "turning": "procrustes",
    "zeroing": "pruning_mixture",
}

# What a sentence must not contain: comments, docstrings, messages, help, documents.
PROSE = {
    r"thie(f|ves)('s)?|pirates?|guilty": "attacker, colluders",
    r"told|tells": "predicts, responds, shows, is given",
    r"heard?|hears": "updates, received, queried",
    r"politeness|patiently": "retries",
    r"h[au]ngs? on|hanging on": "depends on",
    r"beside": "next to",
    r"(?<!data )holders?": "recipient, data holder",
    r"likeness(es)?": "similarity",
    r"openers?": "identity",
    r"put back|puts back|put in order": "align",
    r"dealt": "layer-wise",
    r"clouds?": "synthetic images",
    r"leaning|rearranged|rearranging": "rotation test, rotated, matched",
    r"dialects?": "tensor names",
    r"floors?|rooms": "layer, package",
    r"opinions?": "pseudo-labels",
    r"own questions?|levers?": "assigned triggers, head updates",
    r"questions?": "trigger, trigger set",
    r"who(so)?ever|in its place|of one's own|at hand|goes on|for who|as like": "say it plainly",
    r"as (?:it is|they are)(?= (?:and|or|in|at)\b|[.,;:)]|$)": "unchanged",
    r"twins?": "say what it is",
}

# Names that files, the wire, key derivations or other libraries fix: where they may stand, and why.
FROZEN_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "answers": (("tests/blackbox/querying/test_proof.py",), "a key of proofs"),
    "advance": (("examples/",), "a method of rich's progress bars"),
    "centre": (("hf_fingerprint/privacy/",), "a key of the state dicts of bottleneck and denoiser"),
    "covers": (("hf_fingerprint/blackbox/trigger_set/", "tests/blackbox/"), "the module of cover images, in house.md"),
    "floor": (("",), "a function of math and numpy"),
    "questions": (("hf_fingerprint/blackbox/querying/", "tests/blackbox/"), "a field of the transcript's first line"),
}
# Parts of sentences that name such a thing.
FROZEN_PROSE: dict[str, tuple[tuple[str, ...], str]] = {
    r"`questions?`|questions \(`int`\)": (("hf_fingerprint/", "tests/"), "a table, a key of transcripts and proofs"),
    r"(FROM|INTO|TABLE|UPDATE|table|JOIN) questions|\bquestions\.|-- .*questions.*|questions \(": (
        ("hf_fingerprint/vault/", "tests/", "examples/benchmarks/tampered_rows.py"),
        "a table of the vault; its schema is frozen, comments included",
    ),
    r'\\?"questions?\\?"': (("examples/benchmarks/fuzz_targets.py", "tests/"), "a key of transcripts and proofs"),
    r"[Hh]olders?": (("hf_fingerprint/privacy/",), "a data holder"),
    r"`[^`]+`": (("docs/formats/",), "names in files, on the wire and in key derivations"),
}


@dataclass(frozen=True)
class Hit:
    """A word that should be gone: where it stands, and what to say instead."""

    kind: str
    word: str
    path: str
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind} `{self.text}` says {self.word!r}; say {self.instead}"


def words_in(name: str) -> list[str]:
    """Returns the words of an identifier, option or key, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def faults_of_name(name: str, path: str = "") -> list[tuple[str, str]]:
    """Returns the words of a name that should be gone, each with what to say instead."""
    if name in FROZEN_NAMES and path.startswith(FROZEN_NAMES[name][0]):
        return []
    words = words_in(name)
    joined = f"_{'_'.join(words)}_"
    found = [(word, WORDS[word]) for word in words if word in WORDS]
    if "data" in words or "place" in words:
        found = [each for each in found if each[0] not in ("holder", "holders")]
    found += [(phrase, instead) for phrase, instead in PHRASES.items() if f"_{phrase}_" in joined]
    found += [(name, NAMES[name])] if name in NAMES else []
    return found + [(word, "American spelling") for word in words if is_british(word)]


@cache
def is_british(word: str) -> bool:
    return bool(BRITISH.search(word)) and not AMERICAN.match(word)


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields every name in a module: variables, attributes, parameters, keywords, classes, functions."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "arg", "name", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield line, name.split(".")[-1]


def keys(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields literal keys of the dictionaries in `to_dict`, `describe` and the commands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.lineno, key.value


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Yields comments, and strings that have a space."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
        elif token.type in (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)) and " " in token.string.strip():
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, line


PROSE_PATTERN = {re.compile(rf"\b(?:{words})(?!\w)", re.IGNORECASE): instead for words, instead in PROSE.items()}
PLAIN_WORD = re.compile(r"[A-Za-z][a-z]+")


def faults_of_sentence(path: str, text: str) -> list[tuple[str, str]]:
    """Returns the words of a sentence that should be gone, each with what to say instead."""
    for frozen, (paths, _) in FROZEN_PROSE.items():
        text = re.sub(frozen, "", text) if path.startswith(paths) else text
    patterns = PROSE_PATTERN.items()
    found = [(match[0].lower(), say) for pattern, say in patterns for match in pattern.finditer(text)]
    return found + [(word, "American spelling") for word in PLAIN_WORD.findall(text) if is_british(word.lower())]


@cache
def python_files() -> list[Path]:
    found = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if path != Path(__file__)]


def name_hits() -> Iterator[Hit]:
    for path in python_files():
        shown = str(path.relative_to(ROOT))
        names = [(0, part.removesuffix(".py")) for part in path.relative_to(ROOT).parts]
        for line, name in names + list(identifiers(ast.parse(path.read_text()))):
            for word, instead in faults_of_name(name, shown):
                yield Hit("name", word, shown, line, name, instead)
        stem = path.stem.removeprefix("test_")
        if stem in MODULES:
            yield Hit("module", stem, shown, 0, path.name, MODULES[stem])


def key_hits() -> Iterator[Hit]:
    for path in python_files():
        shown = str(path.relative_to(ROOT))
        tree = ast.parse(path.read_text())
        inside = [tree] if shown.startswith("hf_fingerprint/cli/") else []
        inside += [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in ("to_dict", "describe")]
        for line, key in {each for part in inside for each in keys(part)}:
            for word, instead in faults_of_name(key) if shown.startswith("hf_fingerprint") else []:
                yield Hit("key", word, shown, line, key, instead)


OLD_OPTIONS = {
    "--whole": "--full, --exhaustive",
    "--again": "--reissue-from",
    "--style": "--request-format",
    "--eps": "--amplitude",
    "--covers": "--cover-images",
    "--share": "--assigned-share",
    "--recipients-planned": "--expected-recipients",
}


def option_hits() -> Iterator[Hit]:
    import typer

    from hf_fingerprint.cli.main import app

    def visit(command, path: str) -> Iterator[tuple[str, str]]:
        yield path, path.split()[-1]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                yield path, option
        for name, inner in getattr(command, "commands", {}).items():
            yield from visit(inner, f"{path} {name}")

    for path, option in visit(typer.main.get_command(app), "hf-fingerprint"):
        for word, instead in faults_of_name(option):
            yield Hit("option", word, path, 0, option, instead)
        if option in OLD_OPTIONS:
            yield Hit("option", option, path, 0, option, OLD_OPTIONS[option])


def sentence_hits() -> Iterator[Hit]:
    for path in python_files():
        shown = str(path.relative_to(ROOT))
        for line, text in sentences(path.read_text()):
            for word, instead in faults_of_sentence(shown, text):
                yield Hit("sentence", word, shown, line, text.strip()[:100], instead)


def document_hits() -> Iterator[Hit]:
    for path in sorted({path for pattern in TEXTS for path in ROOT.glob(pattern)}):
        shown = str(path.relative_to(ROOT))
        for line, text in enumerate(path.read_text().splitlines(), start=1):
            for word, instead in faults_of_sentence(shown, text):
                yield Hit("document", word, shown, line, text.strip()[:100], instead)


@pytest.mark.parametrize("hits", [name_hits, key_hits, option_hits, sentence_hits, document_hits])
def test_no_word_is_left_that_the_field_does_not_use(hits):
    found = list(hits())

    assert not found, f"{len(found)} words:\n" + "\n".join(map(str, found[:50]))


def test_the_words_would_be_found():
    assert [word for word, _ in faults_of_name("ThiefOf_toldRegulariser")] == ["thief", "told", "regulariser"]
    assert faults_of_name("--recipients-planned") and faults_of_name("Scene") and not faults_of_name("attacker")
    assert faults_of_sentence("", "It hangs on what the model told.") and not faults_of_sentence("", "It depends.")


def report() -> str:
    """Returns how often each word is left, by package."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for hits in (name_hits, key_hits, option_hits, sentence_hits, document_hits):
        for hit in hits():
            counts.setdefault((hit.kind, hit.word.lower()), Counter())["/".join(hit.path.split("/")[:2])] += 1
    lines = [f"{kind:9}{word:22}{sum(at.values()):5}  {dict(at.most_common())}" for (kind, word), at in counts.items()]
    return "\n".join(sorted(lines))


if __name__ == "__main__":
    import sys

    if sys.argv[1:]:
        for finder in (name_hits, key_hits, option_hits, sentence_hits, document_hits):
            for hit in finder():
                if hit.path.startswith(tuple(sys.argv[1:])):
                    print(hit)  # noqa: T201
    else:
        print(report())  # noqa: T201
