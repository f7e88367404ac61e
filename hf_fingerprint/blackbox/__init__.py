"""A fingerprint that is read through a model's answers, after the abstract of SECUREMARK-DL (arXiv 2207.04668).

The paper was withdrawn and only its abstract exists, so the design is our own: key images carry a recipient's
fingerprint invisibly, and can be read back by who has the covers; a copy's answers to a pool of questions are labels
drawn from its key, which prove whose copy it is.
"""

from hf_fingerprint.blackbox.client.class_names import Labels, read_labels
from hf_fingerprint.blackbox.client.parsing import class_told
from hf_fingerprint.blackbox.client.remote import from_inference_client, from_url
from hf_fingerprint.blackbox.client.retries import Politeness
from hf_fingerprint.blackbox.client.suspects import Suspect, from_callable, from_folder, from_pipeline
from hf_fingerprint.blackbox.key_images.export import KeySet, export_key_images
from hf_fingerprint.blackbox.key_images.identify import KeyImageReader, ReadImage, read_image
from hf_fingerprint.blackbox.key_images.key_image import KeyImage, fingerprint_of, make_key_image, read_key_image
from hf_fingerprint.blackbox.key_images.payload import USUAL_BITS, coded_bits
from hf_fingerprint.blackbox.querying.e_process import Evidence, log_stake
from hf_fingerprint.blackbox.querying.proof import Proven, check_proof, write_proof
from hf_fingerprint.blackbox.querying.query import QueryResult, QueryScore, query
from hf_fingerprint.blackbox.trigger_set.build import prepare_questions
from hf_fingerprint.blackbox.trigger_set.covers import synthetic_cover
from hf_fingerprint.blackbox.trigger_set.labels import keyed_labels
from hf_fingerprint.blackbox.trigger_set.triggers import Questions


__all__ = [
    "USUAL_BITS",
    "Evidence",
    "KeyImage",
    "KeyImageReader",
    "KeySet",
    "Labels",
    "Politeness",
    "Proven",
    "QueryResult",
    "QueryScore",
    "Questions",
    "ReadImage",
    "Suspect",
    "check_proof",
    "class_told",
    "coded_bits",
    "export_key_images",
    "fingerprint_of",
    "from_callable",
    "from_folder",
    "from_inference_client",
    "from_pipeline",
    "from_url",
    "keyed_labels",
    "log_stake",
    "make_key_image",
    "prepare_questions",
    "query",
    "read_image",
    "read_key_image",
    "read_labels",
    "synthetic_cover",
    "write_proof",
]
