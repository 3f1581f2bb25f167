"""Models on the Hugging Face Hub: one file, model.safetensors, with all that a detector needs."""

import os
from types import ModuleType

from aligndetr.utils.extras import require

from .errors import CheckpointError

SCHEME = "hf"
FILE = "model.safetensors"


def download_from_hub(url: str) -> str:
    """Fetch a model's file into the Hub's own cache, unless it is there in this version.

    Args:
        url: `hf://user/model`, or `hf://user/model@revision` with a branch, tag or commit.

    Returns:
        Where it lies.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        CheckpointError: there is no such model, or it has no model.safetensors (files that could
            run code are not even asked for).
    """
    repo, _, revision = url.removeprefix(f"{SCHEME}://").partition("@")
    client = _client()
    try:
        return client.HfApi().hf_hub_download(repo, FILE, revision=revision or None)
    except Exception as error:  # the client's own errors, and those of its http library
        raise CheckpointError(
            f"{url!r} could not be fetched from the Hub: {_first_line(error)}. Expected "
            f"user/model, with the file {FILE} in it; a private one needs `hf auth login`."
        ) from error


def upload_to_hub(folder: str | os.PathLike, repo: str, *, private: bool = False) -> str:
    """Put the files of a folder into a model on the Hub, which is made if there is none.

    Args:
        repo: `user/model`.
        private: for a new model; one that is there keeps its visibility.

    Returns:
        The address of its page.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        OSError: nobody is logged in, or the Hub refuses.
    """
    client = _client()
    try:
        api = client.HfApi()
        page = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a detector")
    except Exception as error:
        raise OSError(
            f"{repo!r} could not be written to the Hub: {_first_line(error)}. Log in with "
            "`hf auth login`, or set HF_TOKEN to a token that may write."
        ) from error
    return str(page)


def _client() -> ModuleType:
    return require("huggingface_hub", "hub", "exchanging models with the Hub")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
