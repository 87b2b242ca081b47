"""SLURP: `dataset/slurp/{train,devel,test,train_synthetic}.jsonl`; recordings in `audio/slurp_{real,synth}`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from wavcube_plugins.data.corpora.layout import CorpusError, Record, expect_file, expect_folder, read_lines

_AUDIO = {"train": "slurp_real", "devel": "slurp_real", "test": "slurp_real", "train_synthetic": "slurp_synth"}


def read(root: str | os.PathLike, parts: Sequence[str] = ("train", "devel", "test")) -> Iterator[Record]:
    """Return every recording of some parts; labels: scenario, action, slots [[type, words], …].

    Args:
        root: The folder with `dataset` in it; the folders of audio are in its folder `audio` or beside `dataset`.
        parts: Of train, devel, test and train_synthetic.

    Raises:
        CorpusError: a list is missing, or a line of it is not what SLURP's lists have.
    """
    root = expect_folder(root, "the folder of SLURP")
    lists = expect_folder(root / "dataset" / "slurp", "SLURP's lists train.jsonl, devel.jsonl and test.jsonl")
    paths = {part: expect_file(lists / f"{part}.jsonl", "a list of SLURP") for part in parts}
    return (utterance for part, path in paths.items() for utterance in _walk(root, part, path))


def _walk(root: Path, part: str, listing: Path) -> Iterator[Record]:
    audio = root / "audio" / _AUDIO[part]
    if not audio.is_dir():
        audio = root / _AUDIO[part]
    for number, line in read_lines(listing):
        try:
            item = json.loads(line)
            words = [token["surface"] for token in item["tokens"]]
            slots = [
                [entity["type"], " ".join(words[index] for index in entity["span"])] for entity in item["entities"]
            ]
            labels = {"scenario": item["scenario"], "action": item["action"], "slots": slots}
            text = item["sentence"]
            files = [recording["file"] for recording in item["recordings"]]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CorpusError(f"{listing}, line {number}: not a line of SLURP ({error!r})") from error
        for file in files:
            yield Record(id=Path(file).stem, path=audio / file, split=part, text=text, labels=labels)
