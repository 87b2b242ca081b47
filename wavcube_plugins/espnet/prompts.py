"""Checks the prompt lists of `espnet2.bin.tts_inference`, so that mistakes show before anything is synthesised."""

from __future__ import annotations

from collections.abc import Sequence

from wavcube_plugins.audio import AudioError, read_info
from wavcube_plugins.data.kaldi import read_table
from wavcube_plugins.errors import InputError

# (path, name, type), as in --data_path_and_name_and_type.
Data = Sequence[tuple[str, str, str]]


def check_prompt_lists(data: Data) -> None:
    """Check that prompts have both speech and transcripts, and every text its prompt.

    Raises:
        InputError: One of the two is missing, or an utterance in one of them.
    """
    files = {name: path for path, name, _ in data}
    if not files.keys() & {"prompt_text", "prompt_speech"}:
        return
    for name, other, kind in (("prompt_text", "prompt_speech", "text"), ("prompt_speech", "prompt_text", "sound")):
        if name not in files:
            raise InputError(
                f"there is {other} but no {name}; a prompt needs speech and transcript: add "
                f"--data_path_and_name_and_type FILE,{name},{kind}"
            )
    texts = read_table(files["text"]) if "text" in files else {}
    for name in ("prompt_text", "prompt_speech"):
        keys = read_table(files[name])
        for key in texts:
            if key not in keys:
                raise InputError(f"{files[name]}: has no entry for the utterance {key} of {files['text']}")


def check_prompt_rates(data: Data, sample_rate: int) -> None:
    """Check that every prompt is a readable recording with one channel at the model's sample rate in Hz.

    Raises:
        InputError: One is not.
    """
    for path, name, kind in data:
        if name != "prompt_speech" or kind != "sound":
            continue
        for key, recording in read_table(path).items():
            try:
                info = read_info(recording)
            except AudioError as error:
                raise InputError(f"{path}, utterance {key}: {error}") from error
            if info.num_channels != 1:
                raise InputError(f"{recording}: {info.num_channels} channels; a prompt must have one")
            if info.sample_rate != sample_rate:
                raise InputError(
                    f"{recording}: {info.sample_rate} Hz, but the model works at {sample_rate} Hz; resample the prompts"
                )


def without_speech(data: Data) -> Data:
    """Leave out the utterances' own recordings, which stock recipes pass along, where there are prompts."""
    if not any(name == "prompt_speech" for _, name, _ in data):
        return data
    return [entry for entry in data if entry[1] != "speech"]
