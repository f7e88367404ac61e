import pytest
import torch
from PIL import Image

from hf_fingerprint.blackbox.trigger_set.classifier_head import Head, all_features, find_head
from hf_fingerprint.blackbox.trigger_set.covers import synthetic_cover
from hf_fingerprint.blackbox.trigger_set.label_cost import log_cost
from hf_fingerprint.blackbox.trigger_set.optimize import (
    MAX_PATTERN,
    View,
    inverse_second_moment,
    make_views,
    optimize_patterns,
    preprocessing_crop,
    solve_head_updates,
)
from hf_fingerprint.blackbox.trigger_set.rendering import Renderer
from hf_fingerprint.blackbox.trigger_set.triggers import GRID, synthetic_cover_images
from tests.helpers.fake_cuda import CUDA, Transfers, fake_cuda
from tests.helpers.tiny_built import tiny


SYNTHETIC = torch.from_numpy(synthetic_cover_images(bytes(32), 6)).permute(0, 3, 1, 2).float()
NO_PATTERNS = torch.zeros(6, 3, GRID, GRID)
ORDINARY = torch.randn(300, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("crop", [1.0, 0.9, 0.875])
def test_the_crop_of_a_model_s_preprocessing_is_found(crop):
    assert preprocessing_crop(tiny(crop, size=128)) == crop


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_images_are_seen_as_the_model_s_preprocessing_gives_them(crop):
    built, cover = tiny(crop), synthetic_cover(bytes(32), 3)
    theirs = built.preprocess(Image.fromarray(cover))

    renderer = Renderer(crop, built, NO_PATTERNS)
    ours = renderer.render(torch.from_numpy(cover).permute(2, 0, 1)[None].float(), NO_PATTERNS[:1])[0]

    assert (ours - theirs).abs().mean() <= 0.02
    assert (ours - renderer.render(SYNTHETIC[:1], NO_PATTERNS[:1])[0]).abs().mean() >= 0.2


def test_views_are_the_model_cropped_twice_and_pruned_twice():
    built = tiny()
    views = make_views(built, find_head(built.module, ORDINARY))

    assert [view.crop for view in views] == [0.875, 1.0, 0.875, 0.875]
    assert views[0].model is views[1].model is built.module
    for view in views[2:]:
        assert view.head.layer is view.model.head
        weights = torch.cat([each.flatten() for each in view.model.parameters() if each.ndim > 1])
        assert abs(float((weights == 0).float().mean()) - 0.5) <= 0.01
    assert all((each != 0).all() for each in built.module.parameters())


def test_a_head_update_raises_the_logit_of_its_trigger_alone():
    features = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(2))
    metric = inverse_second_moment(torch.randn(500, 48, generator=torch.Generator().manual_seed(3)))

    head_updates = solve_head_updates(features, metric, 1e-9)

    lifted = head_updates.flatten(0, 1) @ features.double().flatten(0, 1).T
    assert torch.allclose(lifted, torch.eye(12, dtype=torch.float64), atol=1e-5)


def test_head_updates_spare_what_ordinary_features_span():
    rng = torch.Generator().manual_seed(4)
    ordinary = torch.cat([torch.randn(500, 24, generator=rng), 1e-3 * torch.randn(500, 24, generator=rng)], 1)

    head_updates = solve_head_updates(torch.randn(1, 6, 48, generator=rng), inverse_second_moment(ordinary), 1e-9)

    assert head_updates[..., 24:].norm() >= 4 * head_updates[..., :24].norm()


def test_a_larger_ridge_changes_less():
    features = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(2))
    metric = inverse_second_moment(torch.randn(500, 48, generator=torch.Generator().manual_seed(3)))

    sizes = [float(solve_head_updates(features, metric, ridge).norm()) for ridge in (0.01, 0.1, 1.0)]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= 1.5 * sizes[-1]


def test_patterns_make_labels_cheaper():
    built = tiny()
    head = find_head(built.module, ORDINARY)
    metric = inverse_second_moment(all_features(built.module, head, ORDINARY.split(40)))
    views, steps = make_views(built, head), []

    def cost(patterns):
        batches = [Renderer(view.crop, built, patterns).render_batches(SYNTHETIC, patterns) for view in views]
        features = [all_features(v.model, v.head, each).double() for v, each in zip(views, batches, strict=True)]
        return float(log_cost(features, [view.head for view in views], metric))

    patterns = optimize_patterns(
        SYNTHETIC, views, built, metric, 24, lambda _, done, total: steps.append((done, total))
    )

    assert steps == [(done, 24) for done in range(1, 25)]
    assert cost(patterns) <= cost(NO_PATTERNS) - 0.5
    assert patterns.abs().max() <= MAX_PATTERN
    assert torch.equal(patterns, patterns.round())


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "convolution"])
def test_fitting_on_a_gpu_copies_covers_there_and_patterns_back_and_nothing_in_a_step(conv):
    transfers = []
    with fake_cuda():
        with CUDA:
            built = tiny(conv=conv)
        views = [View(built.module, Head("head.weight", built.module.head), crop) for crop in (0.875, 1.0)]
        metric = inverse_second_moment(torch.randn(300, 48, device=CUDA))
        for steps in (1, 4):
            with Transfers() as seen:
                patterns = optimize_patterns(torch.empty(6, 3, 224, 224), views, built, metric, steps)
            transfers.append(seen.names)
        updates = solve_head_updates(torch.randn(2, 6, 48, device=CUDA), metric, 0.1)

    assert transfers[0] == transfers[1]
    assert [name for name in transfers[0] if "copy" in name] == ["aten._to_copy.default"] * 2
    assert patterns.device.type == "cpu"
    assert updates.device == CUDA
