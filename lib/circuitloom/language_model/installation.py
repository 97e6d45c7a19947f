"""Copies a pretrained model from a folder or from the Hugging Face hub into the results."""

import json
import shutil
from pathlib import Path

from ..config import language_model as sections
from ..config.model_shape import check_shape, hub_file
from ..core.atomic_io import fingerprint, partial_folder, remove_partial_folder, replace_folder
from ..core.errors import first_line
from . import legacy_format as legacy
from .anatomy import ANATOMY_FILE, write_anatomy
from .model import load_model
from .model_files import PICKLED, TEXT, WEIGHTS, copy_files, matching

SOURCE = "source.json"


def install(config: sections.ModelFolder | sections.HubModel, tokenizer: Path, output: Path) -> None:
    """Copy the model of the section `config` to the folder `output`.

    The copy has the config, the weights, the tokenizer, the anatomy and a record of the source. Pickled weights are
    converted to safetensors. If the model has no tokenizer, the corpus' tokenizer from the folder `tokenizer` is
    copied. Raises ValueError if the model or its weights are missing or damaged.
    """
    folder, origin = _locate(config)
    if isinstance(config, sections.HubModel) and config.shape is not None:
        check_shape(config.shape, json.loads((folder / "config.json").read_text()))
    with partial_folder(output, fingerprint(**origin)) as partial:
        new = partial / "model"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        # copies: moving a folder breaks a symbolic link, and training in the source would change a hard-linked file
        copy_files(folder, new, TEXT)
        name = origin.get("name") or folder.name
        if legacy.is_legacy(new):
            legacy.convert(folder, name, new)
        elif matching(folder, WEIGHTS):
            copy_files(folder, new, WEIGHTS)
        else:
            load_model(folder, "float32", "cpu").module.save_pretrained(new)  # type: ignore[operator]
        # another version may have written the source folder's anatomy
        (new / ANATOMY_FILE).unlink(missing_ok=True)
        try:
            write_anatomy(load_model(new, config.dtype, "cpu").anatomy, new)
        except ValueError as error:
            # name the folder that the user knows, not the copy
            message = str(error).replace(str(new), str(folder))
            raise ValueError(f"language_model: {message}; replace its files with complete ones") from error
        if not (new / "tokenizer_config.json").is_file():
            copy_files(tokenizer, new, TEXT)
        (new / SOURCE).write_text(json.dumps(origin, indent=2) + "\n")
        replace_folder(new, output)
        remove_partial_folder(partial)


def _locate(config: sections.ModelFolder | sections.HubModel) -> tuple[Path, dict[str, str]]:
    """Returns the model's folder and a record of the model's source.

    Raises ValueError if the folder has no config or no weights.
    """
    if isinstance(config, sections.HubModel):
        folder = _download(config)
        key, remedy = "name", "set HF_HUB_OFFLINE=0 to download them"
        # the hub's cache names a snapshot's folder after its commit
        origin = {"source": "hub", "name": config.name, "revision": config.revision, "commit": folder.name}
    else:
        folder = Path(config.path)
        key, remedy = "path", "put them there, or name another folder"
        origin = {"source": "path", "path": str(folder.resolve())}
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"language_model.{key}: {folder / 'config.json'} does not exist; name a folder in the Hugging Face layout"
        )
    if not matching(folder, (*WEIGHTS, *PICKLED)):
        raise ValueError(
            f"language_model.{key}: {folder} has no weights ({', '.join((*WEIGHTS, *PICKLED))}); {remedy}"
        )
    return folder, origin


def _download(config: sections.HubModel) -> Path:
    """Download the model. Returns the model's folder in the hub's cache.

    Pickled weights are downloaded only if the repository has no other weights.
    """
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    hub_file(config.name, "config.json", config.revision)

    def fetch(patterns: tuple[str, ...]) -> Path:
        # subfolders have checkpoints and other frameworks' weights
        return Path(
            snapshot_download(
                config.name, revision=config.revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]
            )
        )

    try:
        folder = fetch((*TEXT, *WEIGHTS))
        return folder if matching(folder, WEIGHTS) else fetch((*TEXT, *PICKLED))
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ValueError(
            f"language_model.name: {config.name} could not be downloaded ({first_line(error)}); "
            "run again to resume the download"
        ) from error
