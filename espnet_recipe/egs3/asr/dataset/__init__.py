"""The corpus of the recipe, for ESPnet3: Kaldi folders made by `wavcube_plugins.espnet.recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import espnet3.components.data.dataset_builder as espnet3_data
from torch.utils.data import Dataset as TorchDataset

from wavcube_plugins.audio import read_audio
from wavcube_plugins.data import kaldi
from wavcube_plugins.espnet import recipe

SETS = ("train", "valid", "test")
SAMPLE_RATE = 16000  # of WavCube
LONGEST = 30.0  # seconds, of an utterance for training


class DatasetBuilder(espnet3_data.DatasetBuilder):
    """Prepares `data_dir`: the sets as Kaldi folders at 16 kHz in `raw/`, prompts for the test set, and `tokens.txt`.

    Its options are the section `create_dataset` of conf/training.yaml: `data_dir`, and `command`, the arguments of
    `python -m wavcube_plugins.espnet.recipe` that write the sets. ESPnet3's template adds others, which are ignored.
    """

    def is_source_prepared(self, data_dir: str, command: list, **_: Any) -> bool:
        """Return whether the sets have been written."""
        return all((Path(data_dir) / name / "wav.scp").is_file() for name in SETS)

    def prepare_source(self, data_dir: str, command: list, **_: Any) -> None:
        """Write the sets."""
        if recipe.main([str(word) for word in command]) != 0:
            raise RuntimeError(f"create_dataset.command failed: {' '.join(map(str, command))}")

    def is_built(self, data_dir: str, command: list, **_: Any) -> bool:
        """Return whether the token list, which is written last, is there."""
        return (Path(data_dir) / "tokens.txt").is_file()

    def build(self, data_dir: str, command: list, **_: Any) -> None:
        """Convert the recordings, choose prompts and write the token list, the characters of the training text."""
        folder = Path(data_dir)
        for name in SETS:
            longest = LONGEST if name != "test" else None
            kaldi.format_folder(folder / name, folder / "raw" / name, fs=SAMPLE_RATE, longest=longest)
        kaldi.make_prompts(folder / "raw/test", fs=SAMPLE_RATE, source=folder / "raw/train")
        characters = sorted(set("".join(kaldi.read_table(folder / "raw/train/text").values())))
        tokens = ["<space>" if character == " " else character for character in characters]
        (folder / "tokens.txt").write_text("\n".join(["<blank>", "<unk>", *tokens, "<sos/eos>"]) + "\n")


class Dataset(TorchDataset):
    """A set of the corpus: `speech` (T,) and `text`, and for inference also `utt_id` and the prompt.

    Args:
        split: train, valid or test.
        data_dir: As in `create_dataset`.
        inference: Add what is needed beyond training.
    """

    def __init__(self, split: str, data_dir: str, inference: bool = False):
        self.folder = Path(data_dir) / "raw" / split
        self.texts = kaldi.read_table(self.folder / "text")
        self.recordings = kaldi.read_table(self.folder / "wav.scp")
        self.keys = list(self.texts)
        self.prompts = self.prompt_texts = None
        if inference:
            self.prompts = kaldi.read_table(self.folder / "prompt.scp")
            self.prompt_texts = kaldi.read_table(self.folder / "prompt_text")

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self.keys[int(index)]
        item = {"speech": read_audio(self.recordings[key]).numpy(), "text": self.texts[key]}
        if self.prompts is None or self.prompt_texts is None:
            return item
        prompt = {"prompt_speech": read_audio(self.prompts[key]).numpy(), "prompt_text": self.prompt_texts[key]}
        return {"utt_id": key, **item, **prompt}
