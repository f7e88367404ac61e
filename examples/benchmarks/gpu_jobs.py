"""Measures issuing and tracing, decoding, and fitting trigger images on a machine with a GPU; `gpu` starts it."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import timm
import torch

from examples._common.real_inputs import save_timm
from examples._common.results import Figure
from examples.benchmarks.bulk_vault import add_copies
from examples.benchmarks.gpu_sizes import Job, main
from examples.benchmarks.speed import bounded, issuing_ratio, marked_vit, ratio, seconds, tracing_ratios
from hf_fingerprint.blackbox.trigger_set import build
from hf_fingerprint.blackbox.trigger_set.classifier_head import BATCH, all_features, find_head
from hf_fingerprint.blackbox.trigger_set.optimize import inverse_second_moment, make_views, optimize_patterns
from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.codes import Tardos, decode
from hf_fingerprint.codes.scoring import weigh_codewords
from hf_fingerprint.logits import logits_of
from hf_fingerprint.models import build_model, fit_batch_size, map_parameter_names
from hf_fingerprint.vault.key_table import KeyTable


RECIPIENTS = 1000
COLLUDERS, COALITION, FUNCTIONS = 5, 20, 2


def now(device: str) -> float:
    """Returns the time, once the device has nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def issue_and_trace_figures(job: Job) -> Iterator[Figure]:
    """Yields the time to issue and to trace a model, relative to plain work on its file."""
    title, architecture = job.sizes.issued
    with marked_vit(job.work, "vault", architecture) as (issuer, weights):
        figure = issuing_ratio(issuer, weights, job.work / "copies", job.sizes.turns, synced=True)
        yield replace(figure, what=f"{title}: {figure.what}")
        suspect = issuer.issue("suspect", job.work / "suspect").path
        add_copies(issuer.vault, issuer.base, RECIPIENTS - 1)
    for figure in tracing_ratios(issuer.vault, weights, suspect, RECIPIENTS, job.sizes.turns):
        yield replace(figure, what=f"{title}: {figure.what}")


def decoding_figures(job: Job) -> Iterator[Figure]:
    """Yields the time to decode among many recipients, and what its products take on the device.

    A codeword is the output of AES under its recipient's key, which processors compute, so only the product of
    codewords and score functions can move to a GPU. What it takes there includes the copy of the codewords' bits.
    """
    sizes = job.sizes
    codebook, keys = Tardos(sizes.length, COALITION, os.urandom(32)), KeyTable(os.urandom(32 * sizes.recipients))
    sample = [keys[i] for i in range(min(sizes.sample, sizes.recipients))]
    rng = np.random.default_rng(0)
    functions = codebook.standardize(rng.standard_normal((FUNCTIONS, sizes.length)))
    weights = np.ascontiguousarray(2 * functions, np.float32)
    packed = codebook.packed(sample)
    expected = weigh_codewords(packed, weights)
    np.testing.assert_allclose(weigh_on_device(packed, weights, job.device), expected, rtol=0, atol=1e-3)
    makes, scores, ours, theirs = [], [], [], []
    for _ in range(sizes.turns + 1):
        makes.append(seconds(lambda: codebook.packed(sample)))
        scores.append(seconds(lambda: codebook.scores(sample, functions)))
        theirs.append(seconds(lambda: weigh_codewords(packed, weights)))
        ours.append(seconds(lambda: weigh_on_device(packed, weights, job.device)))
    among = f"{len(sample):,} recipients, V = {sizes.length:,}"
    yield Figure(f"score / make the codewords alone, {among}", ratio(scores, makes), "reported")
    what = f"the product on {job.device} with its copies / on one core, {among}, {FUNCTIONS} functions"
    yield Figure(what, ratio(ours, theirs), "reported")
    colluders = [int(i) for i in np.linspace(0, sizes.recipients - 1, COLLUDERS)]
    extracted = np.mean([codebook.codeword(keys[i]) for i in colluders], axis=0)
    extracted += 0.5 * rng.standard_normal(sizes.length)
    began = time.perf_counter()
    found = decode(codebook, keys, extracted, np.ones(sizes.length))
    took = time.perf_counter() - began
    shown = f"{took:.1f} s, {1e6 * took / sizes.recipients:.1f} us each"
    right = not set(found.accused) - set(colluders)
    yield Figure(f"decode among {sizes.recipients:,} recipients, V = {sizes.length:,}", shown, "reported")
    caught = f"{len(set(found.accused) & set(colluders))} of {COLLUDERS}, innocents {'none' if right else 'too'}"
    yield Figure("colluders accused in it", caught, "no innocent", right)


def weigh_on_device(packed: np.ndarray, weights: np.ndarray, device: str) -> np.ndarray:
    """Returns what [`weigh_codewords`] does, from the same bits, by a matrix product on a device.

    Args:
        packed (`np.ndarray` of shape `(n, V / 8)`): codewords.
        weights (`np.ndarray` of shape `(H, V)`): `float32`.
        device (`str`): a device of torch.

    Returns:
        `np.ndarray` of shape `(n, H)`.
    """
    matrix = torch.from_numpy(weights).to(device).T
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
    found = []
    for part in torch.from_numpy(packed).to(device).split(4096):
        bits = part[:, :, None].bitwise_right_shift(shifts).bitwise_and_(1)
        found.append(bits.flatten(1).float() @ matrix)
    return torch.cat(found).cpu().numpy()


def trigger_figures(job: Job) -> Iterator[Figure]:
    """Yields the time to fit a trigger set, and of a step relative to the model's passes over its images."""
    sizes, (title, architecture) = job.sizes, job.sizes.fitted
    folder = save_timm(timm.create_model(architecture), job.work / "base")
    with open_checkpoint(folder) as checkpoint:
        built = build_model(checkpoint, job.device)
        names = map_parameter_names(built.module, checkpoint)
    built.module.requires_grad_(False)
    count, size = sizes.triggers + sizes.decoys, built.size
    images = torch.randn(count, *size, device=job.device)
    batches = images.split(fit_batch_size(size[1] * size[2], BATCH))
    head = find_head(built.module, images)
    views, metric = make_views(built, head), inverse_second_moment(all_features(built.module, head, batches))
    cover_images = torch.rand(count, 3, 224, 224) * 255

    def pass_over(backwards: bool) -> None:
        for batch in batches:
            with torch.set_grad_enabled(backwards):
                output = logits_of(built.module(batch.clone().requires_grad_(backwards)))
            if backwards:
                output.sum().backward()

    def plain_passes() -> float:
        began = now(job.device)
        for number in range(2 * len(views)):  # as many as the start and one step for each view have
            pass_over(backwards=number < len(views))
        return now(job.device) - began

    def fit() -> float:
        began = now(job.device)
        optimize_patterns(cover_images, views, built, metric, len(views))
        return now(job.device) - began

    plain_passes()
    ours, theirs = [], []
    for _ in range(sizes.turns + 1):
        theirs.append(plain_passes())
        ours.append(fit())
    fitted = f"{sizes.triggers} triggers and {sizes.decoys} decoys, {title}, {head.classes:,} classes, {job.device}"
    what = f"{len(views)} steps of fitting / the model's passes over as many images, {fitted}"
    yield bounded(what, ours, theirs, None)
    began = now(job.device)
    chosen = {"count": sizes.triggers, "decoys": sizes.decoys, "steps": sizes.fitting_steps}
    build.N_SYNTHETIC = sizes.ordinary
    made = build.build_trigger_set(built, names, os.urandom(32), "benchmark", **chosen)
    took = now(job.device) - began
    shown = f"{took:.1f} s; copies predict {made.recall:.0%} of their labels"
    yield Figure(f"build the whole set in {sizes.fitting_steps} steps, {fitted}", shown, "reported")


if __name__ == "__main__":
    main({"triggers": trigger_figures, "decoding": decoding_figures, "issue and trace": issue_and_trace_figures})
