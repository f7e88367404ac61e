import types

import torch

from hf_fingerprint.logits import logits_of


def test_features_are_found_in_whatever_a_model_returns():
    pooled, tokens, logits = torch.zeros(2, 8), torch.zeros(2, 5, 8), torch.zeros(2, 3)

    def returned(**given):
        return types.SimpleNamespace(**given)

    assert logits_of(returned(pooler_output=pooled, last_hidden_state=tokens)) is pooled
    assert logits_of(returned(pooler_output=None, last_hidden_state=tokens)) is tokens
    assert logits_of(returned(logits=logits, pooler_output=pooled)) is logits
    assert logits_of(returned(logits=logits, pooler_output=pooled), "features") is pooled
    assert logits_of(returned(logits=logits), "features") is logits


def test_logits_are_found_in_whatever_a_classifier_returns():
    logits = torch.zeros(2, 5)
    assert logits_of(logits) is logits
    assert logits_of((logits, torch.ones(1))) is logits
    assert logits_of([logits]) is logits

    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, num_labels=5))
    assert logits_of(model(torch.zeros(1, 3, 32, 32))).shape == (1, 5)
    assert logits_of(model(torch.zeros(1, 3, 32, 32), return_dict=False)).shape == (1, 5)
