"""Uploads an exported folder to a repository of the Hugging Face hub."""

from pathlib import Path

import yaml

from ..core.errors import first_line
from .record import CARD, check_export

UNKNOWN = "unknown"
"""Licence of a card whose licence was not stated. It is one of the identifiers of the hub."""


def push(folder: Path, repository: str, public: bool = False) -> str:
    """Upload an exported folder as the model repository `repository`, which is created if it is missing.

    A new repository is private unless `public`. The token is that of the environment variable HF_TOKEN or of
    `hf auth login`. Returns the address of the commit. Raises ValueError if the card states no licence, if a file is
    not what was exported, if there is no token, or if the hub refuses.
    """
    import httpx2
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if card_license(folder) is None:
        raise ValueError(
            f"{folder}: the card states no licence; export again with `--license`, such as `--license mit`"
        )
    check_export(folder)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set; set HF_HUB_OFFLINE=0 to upload")
    if get_token() is None:
        raise ValueError("there is no token; set HF_TOKEN, or run `hf auth login`")
    api = HfApi(library_name="circuitloom")
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"Upload {folder.resolve().name}"
        )
    except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
        raise ValueError(
            f"{repository}: could not be uploaded ({first_line(error)}); check the name and the rights of the token, "
            "and run again"
        ) from error
    return commit.commit_url


def card_license(folder: Path) -> str | None:
    """Returns the licence that the card in `folder` states, or None if it states none.

    Raises ValueError if there is no card, or if it has no readable front matter.
    """
    file = folder / CARD
    try:
        _, front, _ = file.read_text().split("---\n", 2)
        license = yaml.safe_load(front)["license"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: no card with front matter; export the run again") from error
    return None if license in (None, UNKNOWN) else str(license)
