"""The channels that are left in each layer of a narrower suspect are found by weights alone."""

import numpy as np
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_fingerprint.extraction import channel_search
from hf_fingerprint.extraction.channel_search import ChannelSearch, LayerShapes


Weights = dict[str, np.ndarray]


def residual_network(rng: np.random.Generator, width: int = 24, hidden: int = 40, blocks: int = 3) -> Weights:
    """A stem, and blocks that read and write one stream: 1x1, depthwise and 1x1 convolutions, with two groups last."""
    found = {"stem": rng.standard_normal((width, 3, 9))}
    for block in range(blocks):
        found[f"{block}.expand"] = rng.standard_normal((hidden, width, 1))
        found[f"{block}.depthwise"] = rng.standard_normal((hidden, 1, 9))
        found[f"{block}.project"] = rng.standard_normal((width, hidden, 1))
    return found | {"grouped": rng.standard_normal((width, width // 2, 9))}


def removed(whole: Weights, stream: np.ndarray, hidden: list[np.ndarray]) -> tuple[Weights, dict[str, np.ndarray]]:
    """The network with these channels alone, in this order; and each layer's rows."""
    half = whole["grouped"].shape[1]
    columns = [stream[: len(stream) // 2], stream[len(stream) // 2 :] - half]
    found, rows = {"stem": whole["stem"][stream]}, {"stem": stream}
    for block, kept in enumerate(hidden):
        found[f"{block}.expand"] = whole[f"{block}.expand"][kept][:, stream]
        found[f"{block}.depthwise"] = whole[f"{block}.depthwise"][kept]
        found[f"{block}.project"] = whole[f"{block}.project"][stream][:, kept]
        rows |= {f"{block}.expand": kept, f"{block}.depthwise": kept, f"{block}.project": stream}
    parts = np.split(whole["grouped"][stream], 2)
    found["grouped"] = np.concatenate([part[:, each] for part, each in zip(parts, columns, strict=True)])
    return found, rows | {"grouped": stream}


def search(whole: Weights, left: Weights, names: dict[str, str] | None = None) -> ChannelSearch:
    """The search among namesakes, or among all layers with fitting shapes if the suspect's were renamed."""
    layers = {}
    for name, ours in whole.items():
        pairs = [name] if names is None else list(left)
        shapes = [(each, LayerShapes(ours.shape, left[each].shape)) for each in pairs]
        layers[name] = [(n, s) for n, s in shapes if s.ours[2] == s.theirs[2] and all(np.less_equal(s.theirs, s.ours))]
    made = ChannelSearch(layers, lambda name, other: (np.float32(whole[name]), np.float32(left[other])))
    made.run()
    return made


def kept_channels(rng: np.random.Generator, count: int, share: float, permuted: bool) -> np.ndarray:
    kept = rng.permutation(count)[: round(share * count)]
    return kept if permuted else np.sort(kept)


def pruned_network(seed: int, share: float, permuted: bool) -> tuple[Weights, Weights, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    whole = residual_network(rng)
    halves = [12 * half + kept_channels(rng, 12, share, permuted) for half in range(2)]
    hidden = [kept_channels(rng, 40, share, permuted) for _ in range(3)]
    return whole, *removed(whole, np.concatenate(halves), hidden)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.5, 0.75, 0.9]),
    noise=st.sampled_from([0.0, 0.2]),
    permuted=st.booleans(),
)
def test_every_layer_gets_the_channels_that_are_left(seed, share, noise, permuted):
    whole, left, rows = pruned_network(seed, share, permuted)
    rng = np.random.default_rng(seed)
    trained = {name: values + noise * rng.standard_normal(values.shape) for name, values in left.items()}
    made = search(whole, trained)
    assert made.found.keys() == whole.keys()
    for name, (_, kept) in made.found.items():
        assert np.array_equal(kept.rows, rows[name]), name
        assert np.array_equal(whole[name][kept.rows[:, None], kept.columns], left[name]), name
    assert made.complete


def test_layers_without_names_are_found_among_all():
    whole, left, _ = pruned_network(3, 0.75, permuted=False)
    names = {name: f"onnx::{place}" for place, name in enumerate(reversed(left))}
    made = search(whole, {names[name]: values for name, values in left.items()}, names)
    assert {name: counterpart for name, (counterpart, _) in made.found.items()} == names


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_another_narrower_network_has_none_of_the_channels(seed):
    whole, _, _ = pruned_network(seed, 0.75, permuted=False)
    _, other, _ = pruned_network(seed + 1, 0.75, permuted=False)
    assert search(whole, other).found == {}


def test_scaled_and_flipped_channels_are_no_obstacle_to_layers_that_follow():
    whole, left, rows = pruned_network(5, 0.75, permuted=False)
    factors = np.exp(np.random.default_rng(0).uniform(-0.5, 0.5, len(left["0.expand"])))
    left["0.expand"] = left["0.expand"] * factors[:, None, None]
    left["0.project"] = left["0.project"] / factors[:, None]
    found = search(whole, left).found
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[name][1].rows, rows[name]) for name in whole)


def test_a_suggested_order_that_is_right_in_part_is_corrected():
    whole, left, rows = pruned_network(5, 0.75, permuted=False)
    whole, left = ({n: v for n, v in each.items() if n != "stem" and "wise" not in n} for each in (whole, left))
    made = search(whole, left)
    assert made.found == {}
    order = rows["grouped"].copy()
    order[:6] = np.setdiff1d(np.arange(24), order)
    made.suggest((len(order), 24), order)
    made.run()
    assert made.found.keys() == whole.keys()
    for name, (_, kept) in made.found.items():
        assert np.array_equal(whole[name][kept.rows[:, None], kept.columns], left[name]), name


def test_work_that_exceeds_its_limit_is_said_to_be_incomplete(monkeypatch):
    monkeypatch.setattr(channel_search, "MAX_WORK", 100)
    whole, left, _ = pruned_network(3, 0.75, permuted=False)
    made = search(whole, left)
    assert not made.complete and len(made.found) < len(whole)


def test_values_of_hostile_weights_stop_nothing():
    whole, left, _ = pruned_network(3, 0.75, permuted=False)
    left["0.expand"] = np.zeros_like(left["0.expand"])
    left["1.expand"] = np.full_like(left["1.expand"], 1e11)
    found = search(whole, left).found
    assert "stem" in found and not {"0.expand", "1.expand"} & found.keys()


def test_rows_that_are_all_the_same_are_assigned_only_as_often_as_the_work_allows(monkeypatch):
    rng = np.random.default_rng(0)
    whole = {str(layer): rng.standard_normal((96, 32, 3)) for layer in range(6)}
    repeated = {name: np.repeat(values[:1], 80, 0) for name, values in whole.items()}
    assigned, assign = [], scipy.optimize.linear_sum_assignment

    def counted(costs):
        assigned.append(costs.shape)
        return assign(costs)

    monkeypatch.setattr("scipy.optimize.linear_sum_assignment", counted)
    monkeypatch.setattr(channel_search, "MAX_WORK", 64 * 80**2 * 96)

    found = search(whole, repeated)

    assert 0 < len(assigned) <= 2
    assert not found.complete
