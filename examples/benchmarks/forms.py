"""Traces a copy in every form in which a stolen classifier turns up: containers, integers, layouts, lost names.

    python -m examples.benchmarks.forms_models --out forms
    python examples/forms/onnx_files.py forms/lite0/copies/alice forms/lite0/made      # each script, each model
    python -m examples.benchmarks.forms --models forms

The scripts of `examples/forms` call the public converters; each has its requirements next to it. A form's score is
divided by that of the same weights, dequantized and in the base's layout, in a safetensors file; next to it stands its
share of the score of the copy itself, which is what the form costs.
"""

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from safetensors.numpy import save_file

from examples._common.owner import PASSPHRASE, RECIPIENT
from examples._common.results import Figure, Table, add_results_option, figure_table, report
from hf_fingerprint import TraceResult, Vault, trace
from hf_fingerprint.checkpoints import find_weight_sets, open_checkpoint
from hf_fingerprint.checkpoints.dtypes import to_float32
from hf_fingerprint.extraction.aligning import match_and_align
from hf_fingerprint.registration import open_base
from hf_fingerprint.vault import Base


MIN_RATIO = 0.9
COLUMNS = ("form", "read as", "types", "score", "of the copy's", "of the same weights'", "outcome", "innocents", "s")


@dataclass(frozen=True)
class Traced:
    """A form and its trace.

    Attributes:
        model (`str`): the model that it was made from.
        form (`str`): its file's or folder's name.
        result ([`TraceResult`]): the trace.
        same (`float`): the score of the same weights in a safetensors file.
        verbatim (`float`): the score of the copy itself.
        seconds (`float`): how long the trace took.
    """

    model: str
    form: str
    result: TraceResult
    same: float
    verbatim: float
    seconds: float

    @property
    def score(self) -> float:
        """The leaker's score."""
        return score_of(self.result)

    @property
    def innocents(self) -> int:
        """How many others are accused."""
        return len({each.recipient for each in self.result.accused} - {RECIPIENT})

    @property
    def ratio(self) -> float:
        """The score, divided by that of the same weights."""
        return self.score / self.same if self.same > 0 else 0.0


def score_of(result: TraceResult) -> float:
    """The leaker's score in a trace."""
    return max((each.score for each in result.scores if each.recipient == RECIPIENT), default=0.0)


def same_weights(base: Base, vault: Vault, form: Path, model: Path) -> Path | None:
    """A safetensors file of the weights of a form: what the converter's library dequantizes, if a script saved it, in
    `expected`; else the weights as they are read and placed. `None` if there are none."""
    if (expected := model / "expected" / f"{form.stem}.safetensors").is_file():
        return expected
    file = model / "same.safetensors"
    with open_base(base, vault) as original:
        found: dict[str, np.ndarray] = {}
        for source in find_weight_sets(form).sets:
            with open_checkpoint(source, suspect=True) as opened:
                suspect, matches, *_ = match_and_align(base, original, opened, aligned=False)
                for name, info in matches.items():
                    values = to_float32(suspect.read(info), info.dtype).reshape(base.tensors[name].shape)
                    found.setdefault(name, np.array(values, np.float32))
    if not found:
        return None
    save_file(found, file)
    return file


def forms_in(folder: Path) -> list[Path]:
    """The forms in a folder: its entries, without the further files of others."""
    further = re.compile(r".*(\.bin|\.onnx[._]data|\.json|\.npz\.expected|\.txt|\.md)")
    return [path for path in sorted(folder.iterdir()) if path.is_dir() or not further.fullmatch(path.name)]


def traced_forms(model: Path) -> Iterator[Traced]:
    """Traces all forms of a model."""
    vault = Vault(model / "vault")
    vault.unlock(PASSPHRASE)
    (base,) = vault.bases()
    verbatim = score_of(trace(model / "copies" / RECIPIENT, vault, base=model / "base", all_scores=True))
    for form in track(forms_in(model / "made"), description=model.name):
        begun = time.perf_counter()
        result = trace(form, vault, base=model / "base", all_scores=True)
        seconds = time.perf_counter() - begun
        same = same_weights(base, vault, form, model)
        score = 0.0 if same is None else score_of(trace(same, vault, base=model / "base", all_scores=True))
        yield Traced(model.name, form.name, result, score, verbatim, seconds)


def table_of(model: str, traced: Sequence[Traced]) -> Table:
    """The table of a model."""
    rows = []
    for each in traced:
        containers = each.result.containers
        rows.append(
            (
                each.form,
                ", ".join(dict.fromkeys(one.format for one in containers)),
                ", ".join(sorted({dtype for one in containers for dtype in one.dtypes})),
                f"{each.score:.1f}",
                f"{each.score / each.verbatim:.2f}",
                f"{each.ratio:.2f}" if each.same else "-",
                str(each.result.outcome),
                str(each.innocents),
                f"{each.seconds:.1f}",
            )
        )
    return Table(model, f"{model}: the copy itself scores {traced[0].verbatim:.1f}", COLUMNS, tuple(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Traces all forms of all models, and prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the folder that forms_models made")
    add_results_option(parser)
    options = parser.parse_args(arguments)
    by_model = {
        model.name: list(traced_forms(model))
        for model in sorted(options.models.iterdir())
        if (model / "made").is_dir()
    }
    everything = [each for traced in by_model.values() for each in traced]
    named = sum({one.recipient for one in each.result.accused} == {RECIPIENT} for each in everything)
    lowest = min(everything, key=lambda each: each.ratio)
    innocents = sum(each.innocents for each in everything)
    figures = [
        Figure("forms traced to the leaker alone", f"{named} of {len(everything)}", "all", named == len(everything)),
        Figure(
            "score / score of the same weights, lowest",
            f"{lowest.ratio:.2f} ({lowest.model}, {lowest.form})",
            f">= {MIN_RATIO}",
            lowest.ratio >= MIN_RATIO,
        ),
        Figure("innocents accused", str(innocents), "0", innocents == 0),
    ]
    report(options, [figure_table(figures), *(table_of(*item) for item in by_model.items())])


if __name__ == "__main__":
    main()
