"""Black-box fingerprinting: identifies a copy by its predictions, without access to its weights.

Every copy of a base predicts labels drawn from its copy key on the trigger images assigned to it. A suspect's
responses to the trigger set therefore prove whose copy it is; see [`query`]. Key images are trigger images that carry
the recipient's fingerprint invisibly; the owner of the trigger set can read it; see [`identify_key_image`].

The design follows the abstract of SECUREMARK-DL (arXiv 2207.04668). The paper was withdrawn, so the details are ours.
"""

from hf_fingerprint.extras import attach as _attach


__getattr__, __dir__ = _attach(__name__, __file__)
