"""The reference has one entry for each public name, and docstrings in Markdown become reST."""

from collections import Counter

import pytest

from docs._extensions.docstrings import internal_names, to_rest
from docs._extensions.reference import PAGES, documented, expand, listed, public_names


def test_each_public_name_has_one_entry():
    entries = Counter(path for page in PAGES.glob("*.md") for path in listed(page.read_text()))

    missing = set(public_names().values()) - entries.keys()
    assert not missing, f"List {sorted(missing)} on a page of docs/reference."
    assert max(entries.values()) == 1, entries.most_common(3)
    assert len(entries) > 150


def test_each_entry_is_a_directive():
    text = expand("# A\n\n```{names}\nissue\nVault\nFingerprintError\nMAX_ALPHA: The *largest*.\n```\n")

    assert text.splitlines()[2:-1] == [
        "```{eval-rst}",
        ".. autofunction:: hf_fingerprint.issue",
        ".. autoclass:: hf_fingerprint.Vault",
        "   :inherited-members: RecordStore, Database, object",
        "",
        ".. autoexception:: hf_fingerprint.FingerprintError",
        "   :inherited-members: Exception, BaseException, object",
        "",
        ".. py:data:: MAX_ALPHA",
        "   :module: hf_fingerprint.codes",
        "",
        "   The *largest*.",
        "",
    ]
    with pytest.raises(ValueError, match="give its full path"):
        expand("```{names}\nno_such_name\n```\n")


def test_names_become_references():
    assert to_rest("See [`issue`] and [`Vault.unlock`].") == (
        "See :py:obj:`~hf_fingerprint.issue` and :py:obj:`Vault.unlock <hf_fingerprint.Vault.unlock>`."
    )
    assert to_rest("[`~Vault.unlock`]") == ":py:obj:`unlock <hf_fingerprint.Vault.unlock>`"
    assert "unseal_copy_key" in internal_names() and "unseal_copy_key" not in documented()
    assert to_rest("[`unseal_copy_key`]") == "``unseal_copy_key``"
    assert to_rest("[`no_such_name`]") == ":py:obj:`~no_such_name`"  # for which the build has no target, and fails


def test_code_and_links():
    assert to_rest("`a * b`, ``c`` and [d](https://e.org/f)") == "``a * b``, ``c`` and `d <https://e.org/f>`__"
    assert to_rest("Text:\n\n    ```python\n    f(`x`)\n\n    g()\n    ```\nEnd `y`.") == (
        "Text:\n\n\n    .. code-block:: python\n\n        f(`x`)\n\n        g()\n\n\nEnd ``y``."
    )


def test_joint_names_become_one_each():
    text = "Attributes:\n    psnr, ssim (`float`): of images,\n        the lowest.\n    last (`int`): the last one.\n"

    assert to_rest(text) == (
        "Attributes:\n    psnr (``float``): of images,\n        the lowest.\n"
        "    ssim (``float``): of images,\n        the lowest.\n    last (``int``): the last one.\n"
    )
