"""The slot filling corpus of s3prl's `ctc` task, for an s3prl without its own.

It takes the place of `s3prl/downstream/ctc/corpus/snips.py` and reads Audio SNIPS as s3prl's preparation leaves it: a
folder of wav files per split and `all.iob.snips.txt`.
"""

from pathlib import Path

from torch.utils.data import Dataset


class SnipsDataset(Dataset):
    """Pairs of an audio file and its characters and slot marks as token numbers, or lists of such pairs.

    Args:
        split: Names of the folders to read.
        tokenizer: s3prl's character tokenizer with slots.
        bucket_size: Above 1, an item is a list of that many pairs of about the same length.
        path: The corpus.
        **settings: The rest of the configuration's `corpus` section; `train_speakers`, `valid_speakers` and
            `test_speakers` are the first letters of the files of a split that count.
    """

    def __init__(self, split, tokenizer, bucket_size, path, **settings):
        folder = Path(path)
        lines = (folder / "all.iob.snips.txt").read_text(encoding="utf-8").splitlines()
        texts = dict(line.strip().split(" ", 1) for line in lines if " " in line.strip())
        items = []
        for name in split:
            speakers = tuple(settings[f"{split[0]}_speakers"])
            for file in sorted((folder / name).rglob("*.wav")):
                if file.stem in texts and file.stem.startswith(speakers):
                    items.append((file, tokenizer.encode(texts[file.stem])))
        if not items:
            raise FileNotFoundError(
                f"{folder}: no file of the splits {', '.join(split)} has a text and a known speaker"
            )
        self.bucket_size = min(bucket_size, len(items))
        self.items = sorted(items, key=lambda item: len(item[1]), reverse=True)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if self.bucket_size == 1:
            return self.items[index]
        start = min(index, len(self.items) - self.bucket_size)
        return self.items[start : start + self.bucket_size]
