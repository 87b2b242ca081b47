"""The phone recognition corpus of s3prl's `ctc` task, for an s3prl without its own.

It takes the place of `s3prl/downstream/ctc/corpus/libriphone.py` and reads what the original reads: a table of files
and transcriptions, and lexicons from words to phones.
"""

import csv
from pathlib import Path

from torch.utils.data import Dataset


class LibriPhoneDataset(Dataset):
    """Pairs of an audio file and the phones of its words as token numbers, or lists of such pairs.

    Args:
        split_csv: The split's table, with columns `wav_path` and `transcription`.
        tokenizer: s3prl's word tokenizer over the phone set.
        bucket_size: Above 1, an item is a list of that many pairs of about the same length.
        lexicon: Files of lines "WORD PHONE PHONE …"; the first entry of a word counts.
        csv_dir: The folder of the tables.
        **settings: The rest of the configuration's `corpus` section, not used.
    """

    def __init__(self, split_csv, tokenizer, bucket_size, lexicon, csv_dir, **settings):
        phones = {}
        for path in lexicon:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                word, *pronunciation = line.split()
                phones.setdefault(word, pronunciation)
        items = []
        with open(Path(csv_dir) / split_csv, encoding="utf-8", newline="") as table:
            for row in csv.DictReader(table):
                spoken = [phone for word in row["transcription"].split() for phone in phones[word]]
                items.append((row["wav_path"], tokenizer.encode(" ".join(spoken))))
        self.bucket_size = min(bucket_size, len(items))
        self.items = sorted(items, key=lambda item: len(item[1]), reverse=True) if bucket_size > 1 else items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if self.bucket_size == 1:
            return self.items[index]
        start = min(index, len(self.items) - self.bucket_size)
        return self.items[start : start + self.bucket_size]
