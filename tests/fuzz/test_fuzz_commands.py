"""The commands on random input: a documented exit code, one line of error, no traceback, and right results."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers.fuzz import LENGTHS, audio_files, damage, guard
from hypothesis import event, given
from hypothesis import strategies as st

from wavcube_plugins import cli, load_model
from wavcube_plugins.audio import AudioError, read_audio
from wavcube_plugins.errors import BAD_INPUT, FAILED, OK

pytestmark = pytest.mark.filterwarnings("ignore:.*UNTRAINED", "ignore:.*channels, mixed down")


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


@pytest.fixture
def work(folder, monkeypatch):
    """The current folder, in which cases write."""
    monkeypatch.chdir(folder)
    return folder


def run(*arguments) -> tuple[int, str]:
    """Run a command in this process; return its exit code and its line of error, "" without one."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), guard():
        code = cli.main([str(argument) for argument in arguments])
    errors = [line for line in err.getvalue().splitlines() if "error: " in line]
    text = out.getvalue() + err.getvalue()
    assert code in (OK, FAILED, BAD_INPUT), text
    assert len(errors) == (code != OK), text
    # The last is what an exception that nobody expected is followed by.
    assert "Traceback" not in text and "out of memory" not in text and "for the traceback" not in text, text
    event(f"{arguments[0]}: exit code {code}")
    return code, errors[0] if errors else ""


def fresh(path):
    """Remove what the last case has left."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def whole(path):
    """Return a file's waveform, or None if it is refused."""
    try:
        with guard():
            return read_audio(path)
    except AudioError:
        return None


changes = st.one_of(st.none(), damage())


@given(audio=audio_files(), change=changes, command=st.sampled_from(("encode", "reconstruct")), half=st.booleans())
def test_encode_and_reconstruct(work, model, audio, change, command, half):
    path = work / f"speech{audio.suffix}"
    path.write_bytes(change(audio.data) if change else audio.data)
    output = fresh(work / ("out.npy" if command == "encode" else "out.wav"))
    options = ["--float16"] if half and command == "encode" else []
    code, error = run(command, path, "-o", output, "--model", "tiny", *options)
    waveform = whole(path)
    if waveform is None:
        assert code == BAD_INPUT and str(path) in error and not output.exists()
        return
    with torch.inference_mode():
        wanted = model.encode(waveform[None])[0] if command == "encode" else model.reconstruct(waveform[None])[0]
    if not torch.isfinite(wanted).all():
        assert code != OK and not output.exists()
        return
    assert code == OK, error
    if command == "encode":
        found = np.load(output)
        assert found.dtype == (np.float16 if half else np.float32)
        np.testing.assert_allclose(found, wanted[0].numpy(), rtol=2e-3 if half else 1e-4, atol=1e-3 if half else 1e-5)
    else:
        found = read_audio(output)
        assert len(found) == wanted.shape[1]
        np.testing.assert_allclose(found, wanted[0].clamp(-1, 1), rtol=0, atol=1e-4)


@st.composite
def latents(draw):
    """Arrays, most of them latents of the tiny model, and their .npy files."""
    frames = draw(st.integers(0, 12))
    channels = draw(st.sampled_from((16, 16, 16, 0, 1, 15, 128)))
    shape = draw(st.sampled_from(((frames, channels), (frames, channels), (1, frames, channels), (frames,), ())))
    kind = draw(st.sampled_from(("<f4", "<f4", "<f2", "<f8", ">f4", ">f8", "<i2", "<c8", "?", "<U3", "O")))
    scale = draw(st.sampled_from((0.0, 1.0, 1.0, 1e4, 1e20, 1e300, float("nan"))))
    with np.errstate(all="ignore"):
        values = (np.random.default_rng(frames).normal(size=shape) * scale).astype(kind)
    if draw(st.booleans()):
        values = np.asfortranarray(values)
    file = io.BytesIO()
    np.save(file, values)
    return values, file.getvalue()


@given(latent=latents(), change=changes, window=st.booleans())
def test_decode(work, model, latent, change, window):
    values, data = latent
    path = work / "latent.npy"
    path.write_bytes(change(data) if change else data)
    output = fresh(work / "decoded.wav")
    code, error = run("decode", path, "-o", output, "--model", "tiny", *(["--window", "4"] if window else []))
    assert output.exists() == (code == OK)
    if code != OK:
        assert str(path) in error or str(output) in error, error
    else:
        waveform = read_audio(output)
        assert torch.isfinite(waveform).all() and waveform.abs().max() <= 1
    if change is None:
        usable = values.ndim == 2 or (values.ndim == 3 and len(values) == 1)
        usable = usable and values.size and values.shape[-1] == model.latent_dim and values.dtype.kind == "f"
        if usable and np.isfinite(values).all() and np.abs(values).max() < 1e3:
            assert code == OK and len(waveform) == model.hop_length * values.shape[-2]
        if not usable:
            assert code == BAD_INPUT


@given(reference=audio_files(), estimate=audio_files(), change=changes, as_json=st.booleans())
def test_compare(work, reference, estimate, change, as_json):
    paths = [work / f"reference{reference.suffix}", work / f"estimate{estimate.suffix}"]
    paths[0].write_bytes(reference.data)
    paths[1].write_bytes(change(estimate.data) if change else estimate.data)
    picture = fresh(work / "picture.png")
    code, error = run("compare", *paths, "-o", picture, *(["--json"] if as_json else []))
    if any(whole(path) is None for path in paths):
        assert code == BAD_INPUT and any(str(path) in error for path in paths)
    assert picture.exists() == (code == OK), error


corpora = st.lists(st.tuples(audio_files(LENGTHS), st.one_of(st.none(), st.none(), damage())), min_size=1, max_size=4)


def make_corpus(folder, files):
    """Write files into an emptied folder; return their paths."""
    fresh(folder).mkdir()
    paths = []
    for number, (audio, change) in enumerate(files):
        paths.append(folder / f"{number}{audio.suffix}")
        paths[-1].write_bytes(change(audio.data) if change else audio.data)
    return paths


@given(files=corpora, source=st.sampled_from(("folder", "scp", "jsonl")), again=st.booleans())
def test_extract(work, model, files, source, again):
    paths = make_corpus(work / "corpus", files)
    listing = work / "corpus"
    if source != "folder":
        listing = work / f"list.{source}"
        lines = [
            f"{path.stem} {path}" if source == "scp" else json.dumps({"id": path.stem, "path": str(path)})
            for path in paths
        ]
        listing.write_text("\n".join(lines) + "\n")
    output = fresh(work / "latents")
    code, _ = run("extract", listing, output, "--model", "tiny", "--workers", "1")
    good = {path.stem: waveform for path in paths if (waveform := whole(path)) is not None}
    assert (code == OK) == (len(good) == len(paths))
    index = output / "index.jsonl"
    found = [json.loads(line) for line in index.read_text().splitlines()] if index.exists() else []
    assert {entry["id"] for entry in found} == set(good)
    for name, waveform in good.items():
        with torch.inference_mode():
            wanted = model.encode(waveform[None])[0][0].numpy()
        latent = np.load(output / "npy" / f"{name}.npy")
        np.testing.assert_allclose(latent, wanted, rtol=2e-3, atol=1e-3)
    if again:
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*.npy")}
        assert run("extract", listing, output, "--model", "tiny", "--workers", "1")[0] == code
        assert {path: path.stat().st_mtime_ns for path in output.rglob("*.npy")} == before


@given(files=corpora, relative=st.booleans())
def test_manifest(work, files, relative):
    paths = make_corpus(work / "corpus", files)
    output = fresh(work / "corpus.jsonl")
    code, error = run("manifest", work / "corpus", output, *(["--relative"] if relative else []))
    good = {path.stem: waveform for path in paths if (waveform := whole(path)) is not None}
    if not good:
        assert code != OK or not output.exists() or output.read_text(), error
        return
    entries = {entry["id"]: entry for entry in map(json.loads, output.read_text().splitlines())}
    # Headers alone are read, so that what is broken inside is listed too.
    assert set(good) <= set(entries)
    for name, waveform in good.items():
        entry = entries[name]
        length = round(entry["duration"] * entry["sample_rate"])
        assert -(-length * 16000 // entry["sample_rate"]) == len(waveform)
        assert os.path.isabs(entry["path"]) != relative
