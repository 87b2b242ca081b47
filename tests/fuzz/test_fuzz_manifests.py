"""Manifests of every format, whole and damaged: the entries they list, or one sentence."""

import gzip
import json
import os

import numpy as np
import pytest
import soundfile
from helpers.fuzz import check_message, damage, guard, json_values, names, to_json
from hypothesis import event, given
from hypothesis import strategies as st

from wavcube_plugins.audio import AudioError
from wavcube_plugins.data.kaldi import KaldiError, read_table, write_table
from wavcube_plugins.data.manifest_writing import write_manifest
from wavcube_plugins.data.manifests import Manifest, read_manifest
from wavcube_plugins.data.utterance import ManifestError

SECONDS = 0.5
KEYS = ("audio_filepath", "audio", "path", "id", "utt", "start", "offset", "duration", "channel", "recording", "type",
        "supervisions", "sources", "source", "text", "end", "sampling_rate", "num_samples", "features")  # fmt: skip


@pytest.fixture(scope="module")
def corpus(folder):
    """Three recordings of half a second."""
    paths = [folder / f"{name}.wav" for name in "abc"]
    for number, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(number).normal(scale=0.1, size=8000), 16000)
    return paths


entries = st.lists(
    st.tuples(
        st.from_regex(r"\A[a-z0-9-]{1,8}\Z"),
        st.integers(0, 2),
        st.one_of(st.none(), st.floats(0, SECONDS - 0.01)),
        st.one_of(st.none(), st.floats(0.001, 2 * SECONDS)),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda entry: entry[0],
)
layouts = st.fixed_dictionaries(
    {
        "newline": st.sampled_from(("\n", "\r\n", "\n\n", "\n \n")),
        "bom": st.booleans(),
        "last": st.booleans(),
        "relative": st.booleans(),
        "gzip": st.booleans(),
    }
)


def write(path, lines, layout):
    """Write lines as editors and tools of all kinds do."""
    text = ("\ufeff" if layout["bom"] else "") + layout["newline"].join(lines) + ("\n" if layout["last"] else "")
    data = text.encode()
    path = path.with_name(path.name + ".gz") if layout["gzip"] else path
    path.write_bytes(gzip.compress(data) if layout["gzip"] else data)
    return path


@given(listed=entries, kind=st.sampled_from(("scp", "jsonl", "list")), layout=layouts)
def test_what_is_listed_is_what_is_read(folder, corpus, listed, kind, layout):
    lines, wanted = [], []
    for name, number, start, duration in listed:
        audio = corpus[number].name if layout["relative"] else str(corpus[number])
        if kind == "jsonl":
            line = {"id": name, "audio_filepath": audio}
            line |= {} if start is None else {"start": start}
            line |= {} if duration is None else {"duration": duration}
            lines.append(to_json(line))
            # A duration without a beginning describes the whole file.
            part = (0.0, None) if start is None else (start, duration)
            wanted.append((name, str(corpus[number]), *part))
        elif kind == "scp":
            lines.append(f"{name} {audio}")
            wanted.append((name, str(corpus[number]), 0.0, None))
        else:
            lines.append(audio)
            wanted.append((os.path.splitext(audio)[0].lstrip("/"), str(corpus[number]), 0.0, None))
    path = write(folder / {"list": "files.txt"}.get(kind, f"manifest.{kind}"), lines, layout)
    with guard():
        found = [(one.id, one.source, one.start, one.duration) for one in read_manifest(path)]
    assert found == list(dict.fromkeys(wanted))
    if not layout["gzip"]:
        manifest = Manifest(path)
        assert [(one.id, one.source, one.start, one.duration) for one in manifest] == wanted
    again = folder / "again.jsonl"
    with guard():
        summary = write_manifest(path, again)
    assert summary.written == len(found) and not summary.failed
    for (name, source, start, duration), one in zip(found, read_manifest(again), strict=True):
        assert (one.id, one.source, one.start) == (name, source, start)
        length = len(one.read(16000)) / 16000
        end = SECONDS if duration is None else min(start + duration, SECONDS)
        assert abs(length - (end - start)) < 2 / 16000


def check_all_readers(path, *, by_line=True):
    """Every reader gives utterances or one sentence; they agree, but that a JSON array cannot be read line by line."""
    found = single = None
    try:
        with guard():
            found = read_manifest(path)
    except ManifestError as error:
        check_message(error, path)
    try:
        with guard():
            manifest = Manifest(path)
    except ManifestError as error:
        check_message(error, path)
    else:
        single = []
        for index in range(len(manifest)):
            try:
                single.append(manifest[index])
            except ManifestError as error:
                check_message(error, path)
                single = None
                break
    if found is not None and path.suffix != ".gz" and by_line:
        assert single is not None and found == list({one.id: one for one in single}.values())
    event("refused" if found is None else "read")
    try:
        with guard():
            write_manifest(path, path.with_name("copy.jsonl"))
    except ManifestError as error:
        check_message(error, path)
    for one in found or ():
        assert "\n" not in one.id and one.id.strip() == one.id
        try:
            with guard():
                one.read(16000)
        except AudioError as error:
            check_message(error, one.source)


@given(listed=entries, kind=st.sampled_from(("scp", "jsonl")), layout=layouts, change=damage())
def test_damaged_manifests_are_read_or_refused(folder, corpus, listed, kind, layout, change):
    lines = [
        f"{name} {corpus[number]}"
        if kind == "scp"
        else to_json({"id": name, "path": str(corpus[number]), "start": start, "duration": duration})
        for name, number, start, duration in listed
    ]
    path = write(folder / f"damaged.{kind}", lines, layout)
    path.write_bytes(change(path.read_bytes()))
    check_all_readers(path)


json_lines = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6),
        st.fixed_dictionaries({"id": names, "path": names}, optional={"start": st.floats(), "duration": st.floats()}),
        json_values,
    ),
    min_size=1,
    max_size=4,
)


@given(values=json_lines)
def test_json_of_any_kind_is_read_or_refused(folder, corpus, values):
    path = folder / "any.jsonl"
    path.write_text("\n".join(map(to_json, values)), encoding="utf-8", errors="surrogatepass")
    check_all_readers(path)


@given(values=json_lines, whole=st.booleans())
def test_a_json_array_is_read_or_refused(folder, corpus, values, whole):
    path = folder / "array.jsonl"
    path.write_text(json.dumps(values, indent=None if whole else 1), encoding="utf-8")
    check_all_readers(path, by_line=False)


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace"))),
       suffix=st.sampled_from((".txt", ".scp", ".jsonl", ".jsonl.gz")))  # fmt: skip
def test_arbitrary_bytes_are_read_or_refused(folder, corpus, data, suffix):
    path = folder / f"bytes{suffix}"
    path.write_bytes(data)
    check_all_readers(path)


texts = st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(table=st.dictionaries(st.from_regex(r"\A[^\s]{1,12}\Z"), texts, min_size=1, max_size=6), change=damage())
def test_kaldi_tables(folder, table, change):
    path = folder / "table"
    wanted = {key: value.strip() for key, value in table.items() if value.strip()}
    write_table(path, wanted)
    if wanted:
        assert read_table(path) == wanted
    path.write_bytes(change(path.read_bytes()))
    try:
        with guard():
            read_table(path)
    except KaldiError as error:
        check_message(error, path)
