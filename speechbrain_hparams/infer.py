#!/usr/bin/env python
"""Runs a model that a recipe trained on files of your own.

    python speechbrain_hparams/infer.py results/mini/asr_ctc/inference speech.wav
    python speechbrain_hparams/infer.py results/mini/enhance/inference noisy.wav --output clean.wav
    python speechbrain_hparams/infer.py results/mini/voice_conversion/inference speech.wav --target voice.wav

The folder's hyperparameter file determines the task. Recognition, understanding, speakers and emotions are printed;
enhancement, separation, conversion and the vocoder write audio. With a folder of `speaker_id`, two files also give the
similarity of their voices. A file that cannot be used is reported, and the others are done.
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
from wavcube_plugins.errors import BAD_INPUT, FAILED, INTERRUPTED, OK, InputError


def complain(error: Exception) -> None:
    """Print an error as one sentence."""
    print(f"infer.py: error: {' '.join(str(error).split())}", file=sys.stderr)


def for_each(items, work) -> int:
    """Call a function with each item, report those that cannot be used, and return how many that were."""
    failed = 0
    for item in items:
        try:
            work(item)
        except (InputError, OSError) as error:
            complain(error)
            failed += 1
    return failed


class _Names(yaml.SafeLoader):
    """Reads the keys of a HyperPyYAML file without making its objects."""


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
    except (InputError, OSError, ImportError) as error:
        complain(error)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    folder = Path(options.folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; train a recipe first")
    settings = folder / "hyperparams.yaml"
    if settings.is_file():
        content = yaml.load(settings.read_text(encoding="utf-8"), Loader=_Names) or {}
        if "pretrainer" not in content:
            raise InputError(f"{settings}: has no 'pretrainer'; name the folder `inference` that a training writes")
        modules = content.get("modules") or {}
    elif (folder / "model.safetensors").is_file():
        modules = {"codec": None}
    else:
        raise InputError(f"{folder}: has neither hyperparams.yaml nor model.safetensors; is it a folder `inference`?")
    loading = {"run_opts": {"device": options.device}}
    if options.decode:
        loading["overrides"] = {"output": "latents"}
    for name, task in TASKS.items():
        if name in modules:
            if options.decode and task not in (enhance, separate):
                raise InputError(f"--decode is for enhancement and separation, and {folder} is of another task")
            sys.path.insert(0, str(folder))  # where a custom head's module was copied to
            failed = task(options, str(folder), loading)
            return OK if not failed else BAD_INPUT if failed == len(options.files) else FAILED
    raise InputError(f"{settings}: is of no task known here, its modules are {', '.join(modules) or 'none'}")


def recognise(options, folder, loading):
    from speechbrain.inference.ASR import EncoderASR

    model = EncoderASR.from_hparams(folder, **loading)

    def work(path):
        wav = read_speech(path, model.hparams.wavcube.sample_rate, resample=options.resample, remedy="--resample")
        print(f"{path}: {model.transcribe_batch(wav[None], wav.new_ones(1))[0][0]}")

    return for_each(options.files, work)


def understand(options, folder, loading):
    from wavcube_plugins.speechbrain import SpokenLanguage

    model = SpokenLanguage.from_hparams(folder, **loading)
    return for_each(
        options.files, lambda path: print(f"{path}: {model.understand_file(path, resample=options.resample)}")
    )


def classify(options, folder, loading):
    from speechbrain.inference.classifiers import EncoderClassifier
    from torch.nn.functional import cosine_similarity

    model = EncoderClassifier.from_hparams(folder, **loading)
    vectors = []

    def work(path):
        wav = read_speech(path, model.hparams.wavcube.sample_rate, resample=options.resample, remedy="--resample")
        _, score, _, names = model.classify_batch(wav[None])
        vectors.append(model.encode_batch(wav[None])[0])
        print(f"{path}: {names[0]} (probability {float(score.exp()):.3f})")

    failed = for_each(options.files, work)
    if len(vectors) == len(options.files) == 2:
        print(f"similarity of the two: {float(cosine_similarity(*vectors, dim=-1)):.3f}")
    return failed


def enhance(options, folder, loading):
    from wavcube_plugins.speechbrain import SpeechEnhancer

    model = SpeechEnhancer.from_hparams(folder, **loading)

    def work(pair):
        model.enhance_file(*pair, resample=options.resample)
        print(pair[1])

    return for_each(outputs(options, "clean"), work)


def separate(options, folder, loading):
    from wavcube_plugins.speechbrain import SpeechSeparator

    model = SpeechSeparator.from_hparams(folder, **loading)

    def work(pair):
        sources = model.separate_file(*pair, resample=options.resample)
        print(*(pair[1].with_name(f"{pair[1].stem}_{number + 1}{pair[1].suffix}") for number in range(len(sources))))

    return for_each(outputs(options, "separated"), work)


def convert(options, folder, loading):
    from wavcube_plugins.speechbrain import VoiceConversion

    if options.target is None:
        raise InputError("name a recording of the wanted voice with --target")
    model = VoiceConversion.from_hparams(folder, **loading)

    def work(pair):
        model.convert_file(pair[0], options.target, pair[1], resample=options.resample)
        print(pair[1])

    return for_each(outputs(options, "converted"), work)


def reconstruct(options, folder, loading):
    from wavcube_plugins.speechbrain import WavCubeCodec

    model = WavCubeCodec.from_hparams(folder, **loading)

    def work(pair):
        model.reconstruct_file(*pair, resample=options.resample)
        print(pair[1])

    return for_each(outputs(options, "wavcube"), work)


def outputs(options, kind: str) -> list[tuple[str, Path]]:
    """Return each file with the one to write: --output, or a file beside it with the kind in its name."""
    output = Path(options.output) if options.output is not None else None
    if output is not None and len(options.files) == 1 and not output.is_dir():
        check_suffix(output)
        return [(options.files[0], output)]
    chosen: dict[Path, str] = {}
    for path in options.files:
        place = (output or Path(path).parent) / f"{Path(path).stem}.{kind}.wav"
        if place in chosen:
            raise InputError(f"{chosen[place]} and {path} would both be written to {place}; run them one by one")
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
