"""What is downloaded from the Hugging Face hub, seen from the side of a small hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from wavcube_plugins.checkpoints import save_model

COMMIT = "c0ffee" * 6 + "c0de"


@pytest.fixture
def hub(tmp_path):
    """A hub that serves the files below `hub.files`, one folder per repository, and notes in `hub.served` which."""
    files = tmp_path / "files"
    files.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            content = self.answer()
            if content:
                self.wfile.write(content)

        def answer(self):
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                folder = files / "/".join(parts[2:4])
                if not folder.is_dir():
                    return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
                info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
                return self.send(200, json.dumps(tree if "tree" in parts[4:] else info).encode())
            content = (files / "/".join(parts[:2]) / "/".join(parts[4:])).read_bytes()
            if self.command == "GET":
                server.served.append("/".join(parts[4:]))
            return self.send(200, content, {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha256(content).hexdigest()})

        def send(self, status, content, headers=None):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            return content

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.served = files, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def load(hub, tmp_path, source, online=True):
    """Load a model in a process of its own, since huggingface_hub reads its settings once; return what it prints."""
    code = (
        "import sys\n"
        "from wavcube_plugins import load_model\n"
        "try:\n"
        "    print(load_model(sys.argv[1]).metadata.get('stage', 'native'))\n"
        "except ValueError as error:\n"
        "    print(type(error).__name__, error)"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port if online else 9}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", code, source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_safetensors_are_preferred_to_checkpoints(hub, tmp_path, golden_model, golden_checkpoint):
    folder = hub.files / "someone" / "both"
    save_model(golden_model, folder)
    for name in ("a.ckpt", "training/b.ckpt", "optimizer.pt", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(golden_checkpoint.read_bytes())
    assert load(hub, tmp_path, "someone/both") == "2"
    assert sorted(hub.served) == ["config.json", "model.safetensors"]
    assert load(hub, tmp_path, "someone/both", online=False) == "2"  # the cache serves where the hub cannot be reached


def test_the_only_checkpoint_of_a_folder_is_downloaded(hub, tmp_path, golden_checkpoint):
    for name, stage in (("One/checkpoints/x=1[a].ckpt", 2), ("Two/y.ckpt", 1)):
        path = hub.files / "someone" / "public" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(golden_checkpoint.with_name(f"official_stage{stage}.ckpt").read_bytes())
    (path.parent / "notes.pt").write_bytes(b"not needed")
    assert load(hub, tmp_path, "someone/public/Two") == "1"
    assert hub.served == ["Two/y.ckpt"]
    assert load(hub, tmp_path, "someone/public/Two", online=False) == "1"


def test_nothing_is_downloaded_where_it_is_not_clear_which(hub, tmp_path):
    folder = hub.files / "someone" / "several"
    folder.mkdir(parents=True)
    for name in ("a.ckpt", "b.ckpt"):
        (folder / name).write_bytes(bytes(1000))
    answer = load(hub, tmp_path, "someone/several")
    assert answer.startswith("CheckpointError someone/several: expected model.safetensors with config.json, or exactly")
    assert answer.endswith("the repository has a.ckpt, b.ckpt")
    assert hub.served == []


def test_an_unknown_repository(hub, tmp_path):
    assert "the hub answers 404: no such repository" in load(hub, tmp_path, "someone/nothing")
    assert "the hub cannot be reached" in load(hub, tmp_path, "someone/nothing", online=False)
