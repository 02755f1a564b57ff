"""Download repositories of the Hugging Face hub into its cache."""

from __future__ import annotations

import difflib
from pathlib import Path

from shard.errors import InputError
from train.timm_models import TIMM
from train.weights.diagnosis import printable

HUB = "hf-hub:"  # prefix of repositories
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
CONFIGS = ("config.json", "preprocessor_config.json")


def download(repository: str) -> Path:
    """Return the folder of a repository's configs and weights, hf-hub:ORG/NAME or with @REVISION, from the cache or
    downloaded.

    The cache is huggingface_hub's (HF_HOME, HF_HUB_CACHE); with HF_HUB_OFFLINE=1 nothing is downloaded. Raises
    InputError if it is not in the cache and can't be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    name, _, revision = repository.removeprefix(HUB).partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*CONFIGS, SAFE]))
        if not (folder / SAFE).exists():  # an older repository
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*CONFIGS, PICKLED]))
    except HFValidationError:
        raise InputError(f"{repository}: not the name of a repository; give {HUB}ORG/NAME") from None
    except RepositoryNotFoundError:
        raise InputError(f"{repository}: no such repository, or one that needs permission; check the name, or run: "
                         "hf auth login") from None  # fmt: skip
    except Exception as error:  # the client's own, its HTTP library's, the file system's
        raise InputError(f"{repository}: not in the cache of huggingface_hub, and can't be downloaded "
                         f"({type(error).__name__}: {printable(error)}); where there is a network, run: hf download "
                         f"{name} --local-dir=FOLDER, and give that FOLDER instead") from None  # fmt: skip
    if not any((folder / file).exists() for file in (SAFE, PICKLED)):
        raise InputError(f"{repository}: has no {SAFE} or {PICKLED}; download its weights and give them as "
                         "timm/ARCH=PATH")  # fmt: skip
    return folder


def timm_repository(arch: str) -> str:
    """Return the repository of timm's pretrained weights for timm/NAME or timm/NAME.TAG.

    Raises InputError if there is none.
    """
    import timm

    name = arch.removeprefix(TIMM)
    tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
    if not timm.is_model(name) or ("." in name and name not in tagged):
        close = difflib.get_close_matches(name, tagged or timm.list_models(), 3, cutoff=0.3)
        raise InputError(f"{arch}: no such model of timm; closest: {', '.join(TIMM + match for match in close)}")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        url = config.url if config is not None and config.url else ""
        raise InputError(f"{arch}: timm has no pretrained weights for it on the hub; "
                         f"{f'download {url}, and give' if url else 'give a file:'} {arch}=PATH")  # fmt: skip
    return HUB + str(config.hf_hub_id)
