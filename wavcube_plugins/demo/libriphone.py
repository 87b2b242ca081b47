"""The phone recognition corpus of s3prl's `ctc` task, which s3prl's wheel forgets (its folder has no __init__.py).

The demo puts this file where s3prl's own would be, `s3prl/downstream/ctc/corpus/libriphone.py`, if there is none. It
reads what the original reads: a table of files and transcriptions, and a lexicon from words to phones.
"""

import csv
from pathlib import Path

from torch.utils.data import Dataset


class LibriPhoneDataset(Dataset):
    """Pairs of an audio file and the phones of its words as token numbers.

    Args:
        split_csv: The split's table, with columns `wav_path` and `transcription`.
        tokenizer: s3prl's word tokenizer over the phone set.
        bucket_size: Must be 1: batches are drawn at random.
        lexicon: Files of lines "WORD PHONE PHONE …"; the first entry of a word counts.
        csv_dir: The folder of the tables.
        **settings: The rest of the configuration's `corpus` section, not used.
    """

    def __init__(self, split_csv, tokenizer, bucket_size, lexicon, csv_dir, **settings):
        if bucket_size != 1:
            raise ValueError("set `bucketing: False` in the configuration: this corpus has no buckets")
        phones = {}
        for path in lexicon:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                word, *pronunciation = line.split()
                phones.setdefault(word, pronunciation)
        self.items = []
        with open(Path(csv_dir) / split_csv, encoding="utf-8", newline="") as table:
            for row in csv.DictReader(table):
                spoken = [phone for word in row["transcription"].split() for phone in phones[word]]
                self.items.append((row["wav_path"], tokenizer.encode(" ".join(spoken))))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]
