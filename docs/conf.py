"""Configuration of Sphinx: pages in Markdown, notebooks as committed, the reference from docstrings."""

import sys
from datetime import date
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import hf_fingerprint  # noqa: E402


project = "hf_fingerprint"
author = "the hf_fingerprint authors"
copyright = f"{date.today():%Y}, {author}"
version = release = hf_fingerprint.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "docs._extensions.reference",
    "docs._extensions.docstrings",  # before napoleon, which then reads the sections
    "sphinx.ext.napoleon",
    "docs._extensions.command_line",
    "docs._extensions.checked_pages",
    "docs._extensions.error_messages",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_extensions", "**/.ipynb_checkpoints"]
nitpicky = True
nitpick_ignore = [("py:class", word) for word in ("callable", "iterable", "sequence", "pairs")]  # words for types

# MyST
nb_merge_streams = True
nb_execution_mode = "off"  # the committed notebooks have their outputs; tests/docs executes them
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# The reference: types are in the docstrings
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"hf_fingerprint {release}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = "$ "
