"""Sources given by name: read from the cache of huggingface_hub, downloaded from a hub, or refused without either."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from timm.models import save_for_hf

from shard.errors import InputError
from tests.conftest import ROOT
from train.weights.hub import timm_repository
from train.weights.open import open_weights
from train.weights.source import Source, parse_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
DOWNLOAD = """
import sys
from shard.errors import InputError
from train.weights.hub import download
for name in sys.argv[1:]:
    try:
        print(download(name))
    except InputError as error:
        print(error)
"""


def run_download(home: Path, environment: dict[str, str], *names: str) -> list[str]:
    """The lines that `download` prints for the names in a process of its own: a folder or a message each."""
    given = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", DOWNLOAD, *names], capture_output=True, text=True, timeout=120,
                         cwd=ROOT, env={**given, **environment})  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def cache(home: Path, repository: str, files: dict[str, bytes]) -> Path:
    """Lay files out as huggingface_hub does in its cache, and return the folder that it gives for them."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for part in (snapshot, folder / "refs", folder / "blobs"):
        part.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, dict[str, bytes]]:
    """A ResNet, and the files that timm puts into a repository."""
    torch.manual_seed(0)
    module = timm.create_model("resnet18", num_classes=3)
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(module, str(folder), safe_serialization=True)
    return module.eval(), {path.name: path.read_bytes() for path in folder.iterdir()}


def test_names_are_opened_from_the_cache(
    resnet: tuple[torch.nn.Module, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, files = resnet
    by_tag, by_name = cache(tmp_path, "timm/resnet18.a1_in1k", files), cache(tmp_path, "org/net", files)
    by = {"hf-hub:org/net": by_name, timm_repository("timm/resnet18"): by_tag}
    if huggingface_hub.__version__ >= "2":  # older versions don't find a commit without a network
        by[f"hf-hub:org/net@{COMMIT}"] = by_name
    assert run_download(tmp_path, OFFLINE, *by) == list(map(str, by.values()))
    # The client reads its environment when it is imported, which other tests have done.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    images = torch.randn(2, 3, 64, 64)
    for name in ("timm/resnet18", "timm/resnet18.a1_in1k", "hf-hub:org/net"):
        read = open_weights(parse_source(name), 64)
        assert read.arch.removeprefix("timm/").startswith("resnet18") and read.stated.source == "from its config.json"
        with torch.inference_mode():
            expected = module.forward_head(module.forward_features(images), pre_logits=True)
            assert (read.encoder(images) - expected).abs().max() < 1e-4 * expected.std(), name


@pytest.mark.parametrize("environment", [OFFLINE, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "no network"])
def test_a_name_that_cannot_be_had_gives_one_line_with_a_cure(environment: dict[str, str], tmp_path: Path) -> None:
    first, second = run_download(tmp_path, environment, "hf-hub:microsoft/rad-dino", "hf-hub:a/b/c")
    assert first.startswith("hf-hub:microsoft/rad-dino: not in the cache of huggingface_hub, and can't be downloaded (")
    assert first.endswith("; where there is a network, run: hf download microsoft/rad-dino --local-dir=FOLDER, and "
                          "give that FOLDER instead")  # fmt: skip
    assert second == "hf-hub:a/b/c: not the name of a repository; give hf-hub:ORG/NAME"


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub with the repositories org/net and org/bare."""
    files = {"org/net": {"config.json": b"{}", "pytorch_model.bin": b"weights", "flax_model.msgpack": b"other"},
             "org/bare": {"config.json": b"{}", "weights.pth": b"weights"}}  # fmt: skip

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = self.path.partition("?")[0].split("/")
            repository = "/".join(place[3:5] if place[1] == "api" else place[1:3])
            held = files.get(repository, {})
            if not held:
                return self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
            if place[1] == "api" and "tree" in place:
                return self.answer(200, json.dumps([
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in held.items()]).encode())  # fmt: skip
            if place[1] == "api":
                return self.answer(200, json.dumps({"_id": "1", "id": repository, "sha": COMMIT}).encode())
            content = held[place[-1]]
            return self.answer(200, content, **{"X-Repo-Commit": COMMIT, "ETag": hashlib.sha1(content).hexdigest()})

        do_HEAD = do_GET

        def answer(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_repository_is_downloaded_without_files_that_are_not_needed(hub: str, tmp_path: Path) -> None:
    net, bare, absent = run_download(tmp_path, {"HF_ENDPOINT": hub}, "hf-hub:org/net", "hf-hub:org/bare",
                                     "hf-hub:org/absent")  # fmt: skip
    assert Path(net).is_relative_to(tmp_path) and (Path(net) / "pytorch_model.bin").read_bytes() == b"weights"
    assert {path.name for path in Path(net).iterdir()} == {"config.json", "pytorch_model.bin"}
    assert bare.startswith("hf-hub:org/bare: has no model.safetensors or pytorch_model.bin; download its weights")
    assert absent == ("hf-hub:org/absent: no such repository, or one that needs permission; check the name, or run: hf "
                      "auth login")  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "reason"),
    [("timm/resnet19", r"timm/resnet19: no such model of timm; closest: timm/resnet\d"),
     ("timm/resnet18.nope", r"no such model of timm; closest: timm/resnet18\."),
     ("timm/resnet10t.", "no such model")],
)  # fmt: skip
def test_an_unknown_name_of_timm_is_refused_with_the_closest(arch: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        open_weights(parse_source(arch))


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for source in (Source("", tmp_path / "a"), Source("timm/resnet18", tmp_path / "a")):
        with pytest.raises(InputError, match="a: no such file or folder"):
            open_weights(source)
