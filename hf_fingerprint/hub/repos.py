"""Creates a variant repo, fills it in one commit, and gives access to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_fingerprint.checkpoints import SkippedFile, list_contents, resolve
from hf_fingerprint.checkpoints.naming import HubId, parse_hub_id
from hf_fingerprint.config import PublishConfig
from hf_fingerprint.errors import HubError
from hf_fingerprint.hub.api import with_retries
from hf_fingerprint.hub.card import README, make_card
from hf_fingerprint.issuing import IssuedCopy
from hf_fingerprint.vault import Base


if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import ModelInfo


_IGNORED_FILES = frozenset([".gitattributes"])


class VariantRepo:
    """One recipient's repo on the Hub. Errors of the Hub client are not translated.

    Args:
        api (`HfApi`): the Hub's client.
        repo (`str`): `org/name`.
        publish_config ([`PublishConfig`]): visibility and access.
    """

    def __init__(self, api: "HfApi", repo: str, publish_config: PublishConfig):
        self._api, self.repo, self.publish_config = api, repo, publish_config

    def open(self, on_record: bool) -> "ModelInfo":
        """Creates the repo if it is missing, and returns its state.

        Args:
            on_record (`bool`): whether the vault records this repo as a variant.

        Raises:
            [`HubError`]: if the repo is public and should not be, or already holds other files.
        """
        config, repo = self.publish_config, self.repo
        with_retries(lambda: self._api.create_repo(repo, private=config.private, exist_ok=True))
        head = with_retries(lambda: self._api.model_info(repo, files_metadata=True))
        if config.private and not head.private:
            raise HubError(f"{repo} is public: make it private in its settings, or publish with --public.")
        existing = {sibling.rfilename for sibling in head.siblings or []} - _IGNORED_FILES
        if existing and not on_record:
            holds = f"already holds files ({min(existing)}) and is not recorded in this vault"
            raise HubError(f"{repo} {holds}: choose another repo.")
        if config.gated is not None and head.gated != config.gated:
            gate = config.gated
            with_retries(lambda: self._api.update_repo_settings(repo, gated=gate))
        return head

    def operations(
        self, base: Base, copy: IssuedCopy, include_code: bool = False
    ) -> tuple[list["CommitOperationAdd"], tuple[SkippedFile, ...]]:
        """The files to push (weights, other files, model card), and the files of the copy's folder to leave out."""
        from huggingface_hub import CommitOperationAdd

        source = resolve(copy.path)
        contents = list_contents(source, include_code)
        operations = [CommitOperationAdd(path.name, path) for path in source.weights]
        for operation in operations:
            if operation.path_in_repo in copy.digests:  # else the client reads the file to hash it
                operation.upload_info.sha256 = bytes.fromhex(copy.digests[operation.path_in_repo])
        on_hub = _base_on_hub(base, self.publish_config.base_model)
        card = make_card(
            source.folder,
            self.repo,
            {o.path_in_repo: o.upload_info.sha256.hex() for o in operations},
            copy.content_hash,
            base_model=on_hub.repo if on_hub is not None else None,
            commitment=copy.commitment if self.publish_config.disclose else None,
            readable_files=[each.name for each in contents.included],
            base_revision=on_hub.revision if on_hub is not None else None,
            base_folder=on_hub.subfolder if on_hub is not None else None,
        )
        others = [each for each in contents.included if each.name != README]
        operations += [CommitOperationAdd(each.name, each.content or each.path) for each in others]
        return [*operations, CommitOperationAdd(README, str(card).encode())], contents.left_out

    def upload(self, operations: list["CommitOperationAdd"]) -> None:
        """Uploads the large files. They are not visible before the commit."""
        with_retries(lambda: self._api.preupload_lfs_files(self.repo, operations))

    def commit(self, head: "ModelInfo", operations: list["CommitOperationAdd"], files: dict[str, str]) -> str:
        """Commits on top of `head` and returns the revision. If the response is lost, the repo's files show whether
        the commit was made."""
        from huggingface_hub import CommitOperationDelete

        stale = {sibling.rfilename for sibling in head.siblings or []} - set(files) - _IGNORED_FILES
        deletions = [CommitOperationDelete(name) for name in sorted(stale)]

        def attempt() -> str:
            try:
                made = self._api.create_commit(
                    self.repo, [*operations, *deletions], commit_message="Add the model", parent_commit=head.sha
                )
                return str(made.oid)
            except Exception:
                now = self._api.model_info(self.repo, files_metadata=True)
                if now.sha != head.sha and holds_files(now, files):
                    return str(now.sha)
                raise

        return with_retries(attempt)

    def give_access(self, account: str) -> None:
        """Gives an account access to the repo."""
        accepted = with_retries(lambda: list(self._api.list_accepted_access_requests(self.repo)))
        if account not in {request.username for request in accepted}:
            with_retries(lambda: self._api.grant_access(self.repo, account))


def _base_on_hub(base: Base, named: str | None) -> HubId | None:
    """The repo that the card names as the base: the one that the publisher names, or where it was registered from."""
    if named is not None:
        return HubId(named, None)
    place = parse_hub_id(base.source) if base.revision else None
    return None if place is None else place._replace(revision=base.revision)


def holds_files(info: "ModelInfo", files: dict[str, str]) -> bool:
    """Whether a repo holds these files. Only the weights are compared by their SHA-256."""
    siblings = info.siblings or []
    digests = {
        each.rfilename: each.lfs.sha256 for each in siblings if each.lfs is not None and each.rfilename in files
    }
    complete = files.keys() <= {each.rfilename for each in siblings}
    return bool(digests) and complete and all(files[name] == digest for name, digest in digests.items())


def relocate_operations(operations: list["CommitOperationAdd"], folder: Path) -> None:
    """Points the operations to a copy's new folder."""
    for operation in operations:
        if isinstance(operation.path_or_fileobj, str):
            operation.path_or_fileobj = str(folder / operation.path_in_repo)
