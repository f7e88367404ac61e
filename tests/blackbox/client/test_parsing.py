import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_fingerprint.blackbox.client.class_names import Labels, read_labels
from hf_fingerprint.blackbox.client.parsing import ResponseParser, parse_response
from tests.helpers.error_checks import refused


NAMES = ["cat", "Dog ", "tabby, cat", "7", "owl"]
SCORES = [0.1, 0.05, 0.6, 0.2, 0.05]


@pytest.mark.parametrize(
    "reply",
    [
        2,
        "tabby, cat",
        "  TABBY, Cat\n",
        "LABEL_2",
        "label_2",
        "2",
        [2],
        [[2]],
        ["tabby, cat", "cat"],
        SCORES,
        [SCORES],
        np.array(SCORES),
        np.array([SCORES], np.float32),
        np.int64(2),
        {"label": "tabby, cat", "score": 0.6},
        {"label": 2},
        {"class": 2, "scores": [1, 0, 0, 0, 0]},
        {"class": "tabby, cat"},
        {"prediction": 2},
        {"predictions": [SCORES]},
        {"predictions": [2]},
        {"predictions": [{"label": "LABEL_2", "probability": 0.6}, {"label": "LABEL_0", "probability": 0.1}]},
        {"probabilities": SCORES},
        {"scores": SCORES},
        {"logits": np.array([SCORES])},
        {"cat": 0.1, "tabby, cat": 0.6, "owl": 0.3},
        [{"label": "cat", "score": 0.1}, {"label": "tabby, cat", "score": 0.6}],
        [[{"label": "tabby, cat", "score": 0.6}, {"label": "cat", "score": 0.1}]],
        [{"label": "tabby, cat"}, {"label": "cat"}],
        [{"label": "tabby, cat", "confidence": 1}],
    ],
    ids=str,
)
def test_the_usual_shapes_are_understood(reply):
    assert parse_response(reply, NAMES) == 2


@pytest.mark.parametrize(
    "reply",
    [
        None,
        True,
        1.0,
        -1,
        5,
        "LABEL_5",
        "LABEL_٢",
        "lynx",
        "",
        [],
        {},
        [[]],
        [None, 3],
        {"error": "busy"},
        SCORES[:4],
        [float("nan")] * 5,
        [{"label": "cat", "score": None}, 3],
        [{"label": "lynx", "score": 0.9}, {"label": "cat", "score": 0.1}],
        {"label": ["cat", {}]},
        json.loads("[" * 300 + "1" + "]" * 300),
        10**400,
        b"cat",
    ],
    ids=lambda reply: ascii(reply)[:20],
)
def test_what_tells_no_class_is_no_answer(reply):
    assert parse_response(reply, NAMES) is None


def test_tensors_are_understood():
    torch = pytest.importorskip("torch")

    assert parse_response(torch.tensor([SCORES], requires_grad=True), NAMES) == 2


def test_a_name_comes_before_a_number_and_a_name_of_two_classes_is_none():
    assert parse_response("7", NAMES) == 3
    assert parse_response(3, NAMES) == 3
    assert parse_response("crane", ["crane", "dog", "Crane"]) is None
    assert parse_response("LABEL_2", ["crane", "dog", "Crane"]) == 2


@pytest.mark.parametrize("field", ["result.top.0", "result.top", "result.all.2.name"])
def test_the_class_is_found_where_one_says(field):
    reply = {"label": "cat", "result": {"top": ["owl"], "all": [{}, {}, {"name": "owl"}]}}

    assert parse_response(reply, NAMES, field) == 4
    assert parse_response(reply, NAMES, field + ".nowhere") is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.data())
def test_the_highest_score_counts_in_whatever_order_they_come(scores, data):
    names = [f"class {index}" for index in range(len(scores))]
    predicted_labels = [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]
    best = int(np.argmax(scores))

    assert parse_response(data.draw(st.permutations(predicted_labels)), names) == best
    assert parse_response(scores, names) == parse_response(np.array(scores), names) == best
    assert parse_response(dict(data.draw(st.permutations(list(zip(names, scores, strict=True))))), names) == best


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(JSON | st.fixed_dictionaries({"predictions": JSON}) | st.lists(st.fixed_dictionaries({"label": JSON})))
def test_no_reply_is_more_than_a_class_or_none(reply):
    predicted_labels = parse_response(reply, NAMES)

    assert predicted_labels is None or (type(predicted_labels) is int and 0 <= predicted_labels < len(NAMES))


def test_three_strange_replies_in_the_beginning_are_refused_and_later_ones_are_none():
    patient = ResponseParser("hf:org/name", NAMES)
    assert [patient("lynx"), patient("lynx"), patient("owl")] == [None, None, 4]
    assert [patient("lynx") for _ in range(5)] == [None] * 5

    hasty = ResponseParser("hf:org/name", NAMES)
    assert [hasty("lynx"), hasty({"error": 1})] == [None, None]
    said = refused(hasty, "ly\x1b[31mnx" + "x" * 500)
    assert "hf:org/name" in said and "ly\\x1b[31mnx" in said and "--labels" in said and len(said) < 350


def test_scores_of_another_number_of_classes_are_rejected_with_both_numbers():
    reader = ResponseParser("hf:org/name", NAMES)
    reader([0.1] * 4)
    reader([0.1] * 4)

    assert "has 4 scores" in refused(reader, [0.1] * 4)


@pytest.mark.parametrize(
    "content",
    [
        "cat\nDog\nowl\n",
        "\ufeffcat\r\nDog\r\n\r\nowl",
        '["cat", "Dog", "owl"]',
        '{"2": "owl", "0": "cat", "1": "Dog"}',
        '{"id2label": {"0": "cat", "1": "Dog", "2": "owl"}, "model_type": "vit"}',
        '{"architecture": "test_vit", "num_classes": 3, "label_names": ["cat", "Dog", "owl"]}',
    ],
)
def test_labels_are_read_from_a_file(tmp_path, content):
    (tmp_path / "labels").write_text(content, encoding="utf-8", newline="")

    assert read_labels(tmp_path / "labels").names == ("cat", "Dog", "owl")


def test_a_config_without_names_gives_numbers(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "x", "pretrained_cfg": {"num_classes": 12}}')

    assert read_labels(tmp_path / "config.json").names == Labels.numbered(12).names


@pytest.mark.parametrize(
    "content", ["", "one", "[]", "{}", '{"0": "a", "5": "b"}', '{"num_classes": -1}', "[1, 2]", "[" * 9999]
)
def test_a_file_without_labels_is_refused(tmp_path, content):
    (tmp_path / "labels").write_text(content)

    refused(read_labels, tmp_path / "labels")


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")

    assert str(tmp_path / "nowhere") in refused(read_labels, tmp_path / "nowhere")
    assert str(tmp_path / "binary") in refused(read_labels, tmp_path / "binary")
