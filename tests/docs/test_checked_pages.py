"""Links without a target and pictures without a text are found in built pages."""

from docs._extensions.checked_pages import faults


def test_what_is_wrong_in_a_page_is_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "sub" / "other.html").write_text('<h1 id="here">Here</h1><a href="../index.html">up</a>')
    (tmp_path / "index.html").write_text(
        '<a href="sub/other.html#here">a</a> <a href="#top">b</a> <a id="top" href="https://example.org/x">c</a>'
        '<a href="mailto:a@example.org">d</a> <img src="picture.png?v=1" alt="A picture.">'
    )

    assert not faults(tmp_path)

    (tmp_path / "sub" / "wrong.html").write_text(
        '<a href="other.html#there">a</a> <a href="gone.html">b</a> <a href="#up">c</a> <img src="../picture.png">'
    )

    assert faults(tmp_path) == [
        "sub/wrong.html: the picture ../picture.png has no text: give it one.",
        "sub/wrong.html: the link other.html#there has no target.",
        "sub/wrong.html: the link gone.html has no target.",
        "sub/wrong.html: the link #up has no target.",
    ]
