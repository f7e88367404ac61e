"""The residual stream of a base is divided where it is normalized."""

import pytest

from hf_fingerprint.checkpoints import open_checkpoint
from hf_fingerprint.extraction.alignment.stream_segments import find_segments
from tests.helpers.small_models import save_timm, save_vit


pytestmark = pytest.mark.integration
BLOCKS = 6


def test_each_half_of_a_block_ends_a_segment(tmp_path):
    with open_checkpoint(save_timm(tmp_path / "model", "test_vit")) as original:
        segments = find_segments(original)

    assert len(segments) == 2 * BLOCKS + 1
    for number, (readers, writers, channels) in enumerate(segments):
        block, half = divmod(number, 2)
        reader = f"blocks.{block}.mlp.fc1" if half else f"blocks.{block}.attn.qkv"
        before = f"blocks.{block - 1}.mlp.fc2" if block else "patch_embed.proj"
        assert [*readers] == ([f"{reader}.weight"] if block < BLOCKS else [])
        assert [*writers] == [f"blocks.{block}.attn.proj.weight" if half else f"{before}.weight"]
        assert channels == 64


def test_segments_of_a_model_of_transformers_have_three_readers_before_an_attention(tmp_path):
    with open_checkpoint(save_vit(tmp_path / "model")) as original:
        segments = find_segments(original)

    assert [len(readers) for readers, _, _ in segments] == [3, 1] * 4 + [0]
    assert all(len(writers) == 1 for _, writers, _ in segments)


def test_a_layer_with_a_kernel_between_two_stages_reads_no_segment(tmp_path):
    with open_checkpoint(save_timm(tmp_path / "model", "test_convnext")) as original:
        segments = find_segments(original)
        shapes = {name: original.tensors[name].shape for readers, writers, _ in segments for name in readers | writers}

    assert segments
    for readers, writers, channels in segments:
        assert all(shapes[name][1:] == (channels,) for name in readers)
        assert all(shapes[name][0] == channels for name in writers)


def test_a_model_without_a_stream_has_no_segments(tmp_path):
    with open_checkpoint(save_timm(tmp_path / "model", "test_resnet")) as original:
        assert find_segments(original) == []
