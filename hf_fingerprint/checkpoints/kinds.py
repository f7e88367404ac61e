"""Classify the files of a model's folder by name.

One list names what loaders and users of a model look for, which may be copied. The other lists name what else is found
next to a model, with the reason why it is skipped.
"""

import re


UNMARKED = "weights in another format, unmarked"
SECRET = "a secret"
STATE = "training state"
SIGNED = "a signature or checksum of the base's files"
CODE = "code; --include-code copies it"
NOT_SHOWN = "an image that the model card does not show"
CHECKPOINTS = "training checkpoints, unmarked"
OTHER = "not part of a model's folder"


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.DOTALL)


_TEXT = r"(\.(txt|md|rst|html))?"
_CONFIGS = _any_of(
    r"((pre|post)?processor|image_processor|video_preprocessor|feature_extractor|generation|tokenizer|quantization)"
    r"_config\.json",
    r"(config|image_processor\w*|quantize_config)\.json",
)
_VOCABULARIES = _any_of(
    r"(tokenizer|special_tokens_map|added_tokens|chat_template)\.json",
    r"vocab\w*\.(json|txt|bpe|model)",
    r"merges\.txt",
    r"(spiece|tokenizer|sentencepiece[\w.-]*)\.model",
    r"chat_template\.jinja",
)
_LABELS = _any_of(
    r"[\w.-]*(labels?|classes|class_?names|class_?map|label_?names|synsets?|id2label|label2id|label_?map|categories)[\w.-]*"
    r"\.(json|txt|csv|tsv|names|pbtxt)"
)
_DATA = _any_of(r".*(^|[\W_])(train|val|valid|validation|test|eval|dev|pseudo)([\W_]|\d|$).*")
_DOCUMENTS = _any_of(rf"(license|licence|notice|copying|citation|use_policy|acknowledge?ments?)[\w-]*{_TEXT}")
_MORE_DOCUMENTS = _any_of(r"readme\.md", r"citation\.(cff|bib)", r"\.gitattributes")
_IMAGES = _any_of(r".*\.(svg|png|jpe?g|webp|gif)")
_CODE_FILES = _any_of(r".*\.py")

_SECRETS = _any_of(
    r".*\.(age|pem|key|p12|pfx|jks|keystore|kdbx|kdb|ppk|gpg|token|ovpn|passwd|htpasswd|secrets?)",
    r"\.(env|netrc|npmrc|pypirc|pgpass|git-credentials|dockercfg|boto|s3cfg|htpasswd|vault-token)([.-].*)?",
    r".*\.env",
    r"_?netrc",
    r"id_(rsa|dsa|ecdsa|ed25519)([.-].*)?",
    r".*(credential|passphrase|password|private_key|api_?key)s?.*",
    r"((hf|api|auth|access)_)?tokens?(\.(txt|json|ya?ml))?",
    r"(.*[_.-])?secrets?([_.-].*)?",
    r"vault\.(db|age)([.-].*)?",
    r".*\.(proof|transcript)(\.\w+)?",
    r".*([_.-]|^)(proof|transcript)s?([_.-].*)?\.(json|jsonl|bin|cbor|safetensors)",
    r"kubeconfig",
)
_STATES = _any_of(
    r"training_args\.\w+",
    r"(optimizer|scheduler|scaler|rng_state|random_states|trainer_state|lr_scheduler)[\w.-]*",
    r"(all|train|eval|test|predict)_results\.json",
    r"events\.out\.tfevents.*",
    r".*\.(log|tfevents|out|err)",
    r"(last|latest)(_checkpoint.*)?",
    r"(args|hparams|hyperparams)\.ya?ml",
)
_SIGNATURES = _any_of(
    r".*\.(sig|asc|sigstore|minisig|p7s|p7m|sha\d*|md5|b3|crt|cer|att|intoto|jsonl\.sigstore)",
    r".*sums?(\.(txt|asc|sig|json))?",
    r"(checksum|manifest|hashes|digest|signature)s?(\.[\w.]+)?",
    r".*\.(sigstore|sig|intoto)\.jsonl?",
)
_LEFT_OUT: tuple[tuple[re.Pattern[str], str], ...] = (
    (_SECRETS, SECRET),
    (_STATES, STATE),
    (_SIGNATURES, SIGNED),
    (_any_of(r".*\.index(\.[\w-]+)*\.json"), "an index of weights that are not copied"),
)
_FOLDERS: tuple[tuple[re.Pattern[str], str], ...] = (
    (_any_of(r"checkpoints?([-_.].*)?", r"(epoch|step)s?[-_]?\d+"), CHECKPOINTS),
    (_any_of(r"runs", r"wandb", r"mlruns", r"lightning_logs", r"tensorboard", r"logs?"), STATE),
    (_any_of(r"\.(ssh|aws|gnupg|azure|kube|docker|config)", r"secrets?", r"credentials?"), SECRET),
    (_any_of(r"\.git"), "the git history"),
    (_any_of(r"\.cache", r"__pycache__", r".*_cache"), "a cache"),
    (_any_of(r"\..*"), "a hidden folder"),
)


def is_model_file(name: str) -> bool:
    """Whether a file of this name belongs to a model, other than weights, code and images."""
    patterns = (_CONFIGS, _VOCABULARIES, _DOCUMENTS, _MORE_DOCUMENTS)
    return any(pattern.fullmatch(name) for pattern in patterns) or is_labels(name)


def is_config(name: str) -> bool:
    """Whether a file of this name is the JSON configuration of a model, preprocessor or tokenizer."""
    return bool(_CONFIGS.fullmatch(name))


def is_labels(name: str) -> bool:
    """Whether a file of this name lists a model's classes rather than the labels of a dataset."""
    return bool(_LABELS.fullmatch(name)) and not _DATA.fullmatch(name)


def is_image(name: str) -> bool:
    return bool(_IMAGES.fullmatch(name))


def is_code(name: str) -> bool:
    return bool(_CODE_FILES.fullmatch(name))


def exclusion_reason(name: str) -> str | None:
    """Why a file of this name is skipped unread, or `None`."""
    return next((reason for pattern, reason in _LEFT_OUT if pattern.fullmatch(name)), None)


def folder_exclusion_reason(name: str) -> str | None:
    """Why a folder of this name is skipped, or `None`."""
    return next((reason for pattern, reason in _FOLDERS if pattern.fullmatch(name)), None)
