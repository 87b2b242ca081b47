"""The same fault has the same words and exit code in every command, and what the environment lacks stops none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.paths import GOLDEN

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="limits and streams of POSIX"),
]

# Runs several commands in one process, since each start costs seconds.
PROGRAM = """
import contextlib, io, json, sys
from wavcube_plugins.cli import main
found = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""

# Files may have no more than 5 kB, as on a disk that is nearly full.
NEARLY_FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with two recordings of four seconds and a latent."""
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for seed, name in enumerate("ab"):
        noise = np.random.default_rng(seed).normal(scale=0.1, size=64000)
        soundfile.write(f"corpus/{name}.wav", noise, 16000)
    np.save("a.npy", np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32))
    entries = (json.dumps({"id": f"u{number}", "path": "corpus/a.wav"}) for number in range(200))
    Path("m.jsonl").write_text("\n".join(entries))
    return tmp_path


def wavcube(*commands, before="", options=(), **environment):
    """Run commands one after the other in one process of its own; return exit code, stdout and stderr of each."""
    done = subprocess.run(
        [sys.executable, *options, "-c", before + PROGRAM, json.dumps(commands, default=str)],
        env={name: value for name, value in {**os.environ, **environment}.items() if value is not None},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COMMANDS = {
    "encode": (["encode", "corpus/a.wav", "-o", "new.npy", "--model", "tiny"], "new.npy"),
    "encode several": (["encode", "corpus", "-o", "new", "--model", "tiny"], "new/a.npy"),
    "decode": (["decode", "a.npy", "-o", "new.wav", "--model", "tiny"], "new.wav"),
    "decode as MP3": (["decode", "a.npy", "-o", "new.mp3", "--model", "tiny"], "new.mp3"),
    "reconstruct": (["reconstruct", "corpus/a.wav", "-o", "new.flac", "--model", "tiny"], "new.flac"),
    "reconstruct several": (["reconstruct", "corpus", "-o", "new", "--model", "tiny"], "new/a.wav"),
    "extract": (["extract", "corpus", "new", "--model", "tiny"], "new/npy/"),
    "convert": (["convert", GOLDEN / "official_stage2.ckpt", "new"], "new"),
    "manifest": (["manifest", "m.jsonl", "new.jsonl"], "new.jsonl"),
    "compare": (["compare", "corpus/a.wav", "corpus/b.wav", "-o", "new.png"], "new.png"),
}


def test_a_full_disk_has_one_word_and_exit_code(folder):
    results = wavcube(*(arguments for arguments, _ in COMMANDS.values()), before=NEARLY_FULL)
    for (arguments, name), (code, _, stderr) in zip(COMMANDS.values(), results, strict=True):
        assert code == 1, (arguments, stderr)
        last = stderr.splitlines()[-1]
        assert last.startswith(f"wavcube {arguments[0]}: error: {name}"), stderr
        assert last.endswith(": cannot be written, file too large")
        assert "Traceback" not in stderr
    assert not [path for path in folder.rglob("*") if path.is_file() and ".tmp" in path.name]
    assert not Path("new.jsonl").exists()


def test_an_extraction_goes_on_when_there_is_room_again(folder):
    words = ["extract", "corpus", "out", "--model", "tiny", "--batch-seconds", "1"]
    soundfile.write("corpus/short.wav", np.zeros(8000), 16000)
    [(code, _, _)] = wavcube(words, before=NEARLY_FULL)
    assert code == 1
    (code, _, stderr), _ = wavcube(words, ["extract", "corpus", "other", "--model", "tiny"])
    assert code == 0, stderr
    assert len(Path("out/index.jsonl").read_text().splitlines()) == 3
    for path in Path("out/npy").iterdir():
        np.testing.assert_allclose(np.load(path), np.load(Path("other/npy", path.name)), atol=2e-3)


def test_the_same_extraction_twice_at_once(folder):
    words = [sys.executable, "-m", "wavcube_plugins.cli", "extract", "corpus", "out", "--model", "tiny"]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
    assert len(Path("out/index.jsonl").read_text().splitlines()) == 2
    [(code, stdout, _)] = wavcube(words[3:])
    assert code == 0 and stdout.startswith("out: 0 utterances extracted; 2 were there already")


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ()),
        ({"HOME": None, "TMPDIR": "/nowhere"}, ("-O",)),
    ],
)
def test_odd_environments(folder, environment, options):
    for name in ("größe.wav", "音.wav"):
        Path("corpus", name).write_bytes(Path("corpus/a.wav").read_bytes())
    results = wavcube(
        ["encode", "corpus", "-o", "enc", "--model", "tiny"],
        ["extract", "corpus", "out", "--model", "tiny"],
        ["manifest", "corpus", "m.jsonl"],
        ["encode", "missing größe.wav"],
        options=options,
        **environment,
    )
    assert [code for code, _, _ in results] == [0, 0, 0, 2], results
    assert len(list(Path("enc").iterdir())) == len(list(Path("out/npy").iterdir())) == 4
    assert "größe" in Path("m.jsonl").read_text(encoding="utf-8") or "\\udc" in Path("m.jsonl").read_text()
    assert "no such file" in results[-1][2]


def test_twenty_open_files_are_enough(folder):
    for number in range(30):
        soundfile.write(f"corpus/c{number}.wav", np.zeros(1000 + number), 16000)
    limit = "import torch, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))"
    [(code, _, stderr)] = wavcube(["extract", "corpus", "out", "--model", "tiny", "--workers", "4"], before=limit)
    assert code == 0, stderr
    assert len(Path("out/index.jsonl").read_text().splitlines()) == 32
