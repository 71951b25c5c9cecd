"""Hub: why a Steering could not be uploaded or downloaded, in a sentence that says what to do.

huggingface_hub and the HTTP library below it raise errors of many kinds. An invalid token, a missing repository and a
private one all end as status 401 or 404, and a download then often says that the connection should be checked.
"""

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import ModelHubMixin, errors

from dsas.errors import ArtifactError, DsasError, OptionError, shown

_REASONS: dict[type[BaseException], str] = {  # the first kind that fits
    errors.GatedRepoError: "access to the repository must be asked for on its page first",
    errors.RepositoryNotFoundError: "the hub has no such repository, or it is private and the token may not read it",
    errors.RevisionNotFoundError: "the repository has no such revision",
    errors.HFValidationError: "a hub id is OWNER/NAME, of letters, digits and -_.",
    errors.OfflineModeIsEnabled: "offline mode is on (HF_HUB_OFFLINE)",
}
_STATUS = {
    401: "the hub wants a token that it accepts: log in with `hf auth login`, or give token=",
    403: "the token has no right to do that: use one that may write to this name",
    409: "the hub says that it has changed meanwhile: try again",
    413: "the hub says that it is too large",
    429: "the hub asks to wait: too many requests",
}
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "ProxyError", "Timeout")


class OnHub(ModelHubMixin):
    """What can be uploaded: `save_pretrained` writes its files into a folder."""

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Upload config.json, model.safetensors and the README card, and return the commit's address.

        repo_id: OWNER/NAME, or NAME for one's own; the repository is made if it is not there. `hub_options` are those
        of huggingface_hub's `ModelHubMixin.push_to_hub`, such as private=True, token and branch.
        Raises ArtifactError, saying what to do, when it cannot be uploaded.
        """
        with TemporaryDirectory() as folder:  # what cannot be stored is refused before a repository is made for it
            self.save_pretrained(folder)
        try:
            return str(super().push_to_hub(repo_id, **hub_options))
        except (DsasError, TypeError):  # the latter of an unknown option
            raise
        except Exception as error:  # the client raises what the HTTP library below it does
            raise ArtifactError(f"not uploaded to {shown(repo_id, 200)}: {hub_reason(error)}") from error


def check_used(push_to_hub: bool, **options: Any) -> None:
    """Raise OptionError for options of an upload where nothing is uploaded."""
    given = [name for name, value in options.items() if value is not None]
    if given and not push_to_hub:
        raise OptionError(f"{', '.join(given)} of save_pretrained: they go with push_to_hub=True")


def hub_reason(error: BaseException) -> str:
    """Return what went wrong, from an error of huggingface_hub and those that it came from."""
    chain = list(_chain(error))
    for one in chain:
        status = getattr(getattr(one, "response", None), "status_code", None)
        if status == 401 and "invalid" in _said(one).lower():
            return _STATUS[401]
        for kind, reason in _REASONS.items():
            if isinstance(one, kind):
                return reason
        if status is not None:
            return _STATUS.get(status, f"the hub answers with status {status}: {_said(one)}")
    if any(type(one).__name__ in _UNREACHABLE for one in chain):
        return "the hub cannot be reached: check the connection, or HF_ENDPOINT"
    return _said(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
