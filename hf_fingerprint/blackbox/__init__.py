"""Black-box fingerprinting: identifies a copy by its predictions, without access to its weights.

Every copy of a base predicts labels drawn from its copy key on the trigger images assigned to it. A suspect's
responses to the trigger set therefore prove whose copy it is; see [`query`]. Key images are trigger images that carry
the recipient's fingerprint invisibly; the owner of the trigger set can read it; see [`identify_key_image`].

The design follows the abstract of SECUREMARK-DL (arXiv 2207.04668). The paper was withdrawn, so the details are ours.
"""

from hf_fingerprint.blackbox.client.class_names import Labels, read_labels
from hf_fingerprint.blackbox.client.parsing import parse_response
from hf_fingerprint.blackbox.client.remote import from_inference_client, from_url
from hf_fingerprint.blackbox.client.retries import RetryPolicy
from hf_fingerprint.blackbox.client.suspects import Suspect, from_callable, from_folder, from_pipeline
from hf_fingerprint.blackbox.key_images.export import KeyImageSet, export_key_images
from hf_fingerprint.blackbox.key_images.identify import KeyImageIdentifier, KeyImageMatch, identify_key_image
from hf_fingerprint.blackbox.key_images.key_image import KeyImage, derive_fingerprint, extract_payload, make_key_image
from hf_fingerprint.blackbox.key_images.payload import DEFAULT_BITS, coded_bits
from hf_fingerprint.blackbox.querying.e_process import EProcess, log_e_value
from hf_fingerprint.blackbox.querying.proof import AccusationCheck, ProofCheck, check_proof, write_proof
from hf_fingerprint.blackbox.querying.query import QueryResult, QueryScore, query
from hf_fingerprint.blackbox.trigger_set.build import make_trigger_set
from hf_fingerprint.blackbox.trigger_set.covers import synthetic_cover
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels
from hf_fingerprint.blackbox.trigger_set.triggers import TriggerSet


__all__ = [
    "DEFAULT_BITS",
    "AccusationCheck",
    "EProcess",
    "KeyImage",
    "KeyImageIdentifier",
    "KeyImageMatch",
    "KeyImageSet",
    "Labels",
    "ProofCheck",
    "QueryResult",
    "QueryScore",
    "RetryPolicy",
    "Suspect",
    "TriggerSet",
    "check_proof",
    "coded_bits",
    "derive_fingerprint",
    "export_key_images",
    "extract_payload",
    "from_callable",
    "from_folder",
    "from_inference_client",
    "from_pipeline",
    "from_url",
    "identify_key_image",
    "keyed_labels",
    "log_e_value",
    "make_key_image",
    "make_trigger_set",
    "parse_response",
    "query",
    "read_labels",
    "synthetic_cover",
    "write_proof",
]
