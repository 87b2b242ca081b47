#!/usr/bin/env python
"""Trains a speech recogniser: CTC over characters or sentencepiece on WavCube's features."""

from __future__ import annotations

import sys

try:
    import speechbrain as sb
except ImportError:
    sys.exit("asr_ctc/train.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.metric_stats import ErrorRateStats

from wavcube_plugins.speechbrain import OnWavCube
from wavcube_plugins.speechbrain.recipes.brain import ON_WAVCUBE, Recipe, head_yaml
from wavcube_plugins.speechbrain.recipes.command import main
from wavcube_plugins.speechbrain.recipes.data import make_dataset
from wavcube_plugins.speechbrain.recipes.text import make_tokens


class Recogniser(Recipe):
    """Characters or pieces by CTC; word and character error rates."""

    needs = ("wav", "text")
    monitor = ("WER", "min")

    def build(self):
        settings = self.settings
        texts = [entry["text"] for entry in self.manifests["train"].values()]
        self.tokens = make_tokens(settings["token_type"], texts, settings["vocab_size"], self.folder)
        head = settings["head"](self.lobe.output_dim, len(self.tokens))
        return {"encoder": OnWavCube(self.lobe, head)}

    def dataset(self, split, manifest):
        tokens = (lambda text: torch.tensor(self.tokens.encode(text)), "text", "tokens")
        return make_dataset(manifest, split, self.speech, features=["wav"], labels=["text"], items=[tokens])

    def compute_forward(self, batch, stage):
        batch = batch.to(self.device)
        inputs, lens = batch.wav_input
        return self.modules.encoder(inputs, lens), self.raw["encoder"].frame_counts(inputs, lens)

    def compute_objectives(self, predictions, batch, stage):
        log_probs, frames = predictions
        targets, target_lens = batch.tokens
        lengths = (target_lens * targets.shape[1]).round().long()
        if stage != sb.Stage.TRAIN:
            best = ctc_greedy_decode(log_probs, frames / log_probs.shape[1], blank_id=0)
            found, wanted = [self.tokens.decode(ids) for ids in best], batch.text
            self.words.append(batch.id, [text.split() for text in found], [text.split() for text in wanted])
            self.letters.append(batch.id, [list(text) for text in found], [list(text) for text in wanted])
        # Averaged over utterances, each divided by its length; one too short for its text counts nothing.
        return torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1), targets, frames, lengths, blank=0, zero_infinity=True
        )

    def start_scores(self, stage):
        self.words, self.letters = ErrorRateStats(), ErrorRateStats()

    def scores(self, stage):
        if stage == sb.Stage.TEST and if_main_process():
            with (self.folder / f"wer_{self.split}.txt").open("w", encoding="utf-8") as file:
                self.words.write_stats(file)
        return {"WER": self.words.summarize("error_rate"), "CER": self.letters.summarize("error_rate")}

    def export(self, folder):
        head = self.settings["head"]
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens.save(folder / "tokenizer.ckpt")
        self.write_inference(
            folder,
            {
                "wavcube": self.lobe_yaml(),
                "head": head_yaml(head, self.lobe.output_dim, len(self.tokens)),
                "encoder": ON_WAVCUBE,
                "tokenizer": self.tokens.yaml,
                "decoding_function": "!name:speechbrain.decoders.ctc_greedy_decode\n    blank_id: 0",
            },
            {"encoder": self.raw["encoder"], "tokenizer": None},
            "modules:\n    encoder: !ref <encoder>\n",
        )


if __name__ == "__main__":
    status = main(Recogniser, __file__, sys.argv[1:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
