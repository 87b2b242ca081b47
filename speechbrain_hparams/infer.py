#!/usr/bin/env python
"""Runs what a recipe trained on files of your own.

    python speechbrain_hparams/infer.py results/mini/asr_ctc/inference speech.wav
    python speechbrain_hparams/infer.py results/mini/enhance/inference noisy.wav --output clean.wav
    python speechbrain_hparams/infer.py results/mini/voice_conversion/inference speech.wav --target voice.wav

The folder's hyperparameter file says which task it is. Recognition, understanding, speakers and emotions are printed;
enhancement, separation, conversion and the vocoder write audio. Two files and a folder of `speaker_id` give the
similarity of their voices.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of torchaudio
        import speechbrain  # noqa: F401
except ImportError:
    sys.exit("infer.py: error: this script needs SpeechBrain; from a clone: pip install '.[speechbrain]'")
import yaml

from wavcube_plugins.audio import check_suffix
from wavcube_plugins.data.speech import read_speech


class _Names(yaml.SafeLoader):
    """Reads a HyperPyYAML file for its names alone."""


_Names.add_multi_constructor("!", lambda loader, suffix, node: suffix)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="infer.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the folder `inference` of a trained recipe")
    parser.add_argument("files", nargs="+", help="audio, in any format libsndfile reads")
    parser.add_argument("--output", help="file to write, for tasks that give audio; with several files a folder")
    parser.add_argument("--target", help="for voice conversion: a few seconds of the wanted voice")
    parser.add_argument("--decode", action="store_true", help="enhance, separate: hear the mapped latent, decoded")
    parser.add_argument("--resample", action="store_true", help="convert files of another sample rate than the model's")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"infer.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; train a recipe first")
    settings = folder / "hyperparams.yaml"
    if settings.is_file():
        modules = (yaml.load(settings.read_text(encoding="utf-8"), Loader=_Names) or {}).get("modules") or {}
    elif (folder / "model.safetensors").is_file():
        modules = {"codec": None}
    else:
        raise ValueError(f"{folder}: has neither hyperparams.yaml nor model.safetensors; is it a folder `inference`?")
    loading = {"run_opts": {"device": options.device}}
    if options.decode:
        loading["overrides"] = {"output": "latents"}
    for name, task in TASKS.items():
        if name in modules:
            if options.decode and task not in (enhance, separate):
                raise ValueError(f"--decode is for enhancement and separation, and {folder} is of another task")
            task(options, str(folder), loading)
            return 0
    raise ValueError(f"{settings}: is of no task known here, its modules are {', '.join(modules) or 'none'}")


def recognise(options, folder, loading):
    from speechbrain.inference.ASR import EncoderASR

    model = EncoderASR.from_hparams(folder, **loading)
    if hasattr(model.tokenizer, "ignore_len"):
        model.tokenizer.ignore_len()  # sentencepiece has none
    for path in options.files:
        wav = read_speech(path, model.hparams.wavcube.sample_rate, resample=options.resample, remedy="--resample")
        print(f"{path}: {model.transcribe_batch(wav[None], wav.new_ones(1))[0][0]}")


def understand(options, folder, loading):
    from wavcube_plugins.speechbrain import SpokenLanguage

    model = SpokenLanguage.from_hparams(folder, **loading)
    for path in options.files:
        print(f"{path}: {model.understand_file(path, resample=options.resample)}")


def classify(options, folder, loading):
    from speechbrain.inference.classifiers import EncoderClassifier
    from torch.nn.functional import cosine_similarity

    model = EncoderClassifier.from_hparams(folder, **loading)
    model.hparams.label_encoder.ignore_len()
    vectors = []
    for path in options.files:
        wav = read_speech(path, model.hparams.wavcube.sample_rate, resample=options.resample, remedy="--resample")
        _, score, _, names = model.classify_batch(wav[None])
        vectors.append(model.encode_batch(wav[None])[0])
        print(f"{path}: {names[0]} (probability {float(score.exp()):.3f})")
    if len(vectors) == 2:
        print(f"similarity of the two: {float(cosine_similarity(*vectors, dim=-1)):.3f}")


def enhance(options, folder, loading):
    from wavcube_plugins.speechbrain import SpeechEnhancer

    model = SpeechEnhancer.from_hparams(folder, **loading)
    for path, output in outputs(options, "clean"):
        model.enhance_file(path, output, resample=options.resample)
        print(output)


def separate(options, folder, loading):
    from wavcube_plugins.speechbrain import SpeechSeparator

    model = SpeechSeparator.from_hparams(folder, **loading)
    for path, output in outputs(options, "separated"):
        sources = model.separate_file(path, output, resample=options.resample)
        print(*(output.with_name(f"{output.stem}_{number + 1}{output.suffix}") for number in range(len(sources))))


def convert(options, folder, loading):
    from wavcube_plugins.speechbrain import VoiceConversion

    if options.target is None:
        raise ValueError("name a recording of the wanted voice with --target")
    model = VoiceConversion.from_hparams(folder, **loading)
    for path, output in outputs(options, "converted"):
        model.convert_file(path, options.target, output, resample=options.resample)
        print(output)


def reconstruct(options, folder, loading):
    from wavcube_plugins.speechbrain import WavCubeCodec

    model = WavCubeCodec.from_hparams(folder, **loading)
    for path, output in outputs(options, "wavcube"):
        model.reconstruct_file(path, output, resample=options.resample)
        print(output)


def outputs(options, kind: str) -> list[tuple[str, Path]]:
    """Return for each file what to write: --output, or beside it, with a word in its name."""
    output = Path(options.output) if options.output is not None else None
    if output is not None and len(options.files) == 1 and not output.is_dir():
        check_suffix(output)
        return [(options.files[0], output)]
    chosen: dict[Path, str] = {}
    for path in options.files:
        place = (output or Path(path).parent) / f"{Path(path).stem}.{kind}.wav"
        if place in chosen:
            raise ValueError(f"{chosen[place]} and {path} would both be written to {place}; run them one by one")
        chosen[place] = path
    return [(path, place) for place, path in chosen.items()]


# By a module that only this task's folder has.
TASKS = {
    "encoder": recognise,
    "model": understand,
    "embedding_model": classify,
    "enhance_model": enhance,
    "separator": separate,
    "voice_converter": convert,
    "codec": reconstruct,
}


if __name__ == "__main__":
    sys.exit(main())
