"""Builds tiny corpora in the layouts they are published in."""

import json

import numpy as np
import soundfile


def sound(path, rate=16000, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * np.sin(np.arange(int(rate * seconds)) / 9.0)
    soundfile.write(path, samples, rate)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def librispeech(root):
    for part, speaker in (("train-clean-100", 19), ("train-clean-360", 20), ("train-other-500", 21),
                          ("dev-clean", 22), ("test-clean", 23), ("test-other", 24)):  # fmt: skip
        chapter = root / part / str(speaker) / "198"
        for number in range(2):
            sound(chapter / f"{speaker}-198-000{number}.flac")
        lines = [f"{speaker}-198-000{number} IT'S LINE {number}" for number in range(2)]
        write(chapter / f"{speaker}-198.trans.txt", "\n".join(lines) + "\n")


def voxceleb(root):
    names = [f"id1000{speaker}/abcd/0000{number}.wav" for speaker in range(1, 5) for number in range(1, 4)]
    for name in names:
        sound(root / "wav" / name)
    write(root / "iden_split.txt", "".join(f"{1 + index % 3} {name}\n" for index, name in enumerate(names)))
    write(root / "veri_test.txt", f"1 {names[9]} {names[10]}\n0 {names[9]} {names[6]}\n")


def iemocap(root):
    for session in range(1, 6):
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, emotion in enumerate(("neu", "exc", "hap", "ang", "sad", "fru", "xxx")):
            name = f"Ses0{session}F_impro01_{'FM'[number % 2]}00{number}"
            lines += [f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()", ""]
            sound(root / f"Session{session}/sentences/wav/Ses0{session}F_impro01/{name}.wav")
        write(root / f"Session{session}/dialog/EmoEvaluation/Ses0{session}F_impro01.txt", "\n".join(lines))


def slurp(root):
    for file, kind in (("train", "real"), ("train_synthetic", "synth"), ("devel", "real"), ("test", "real")):
        item = {
            "slurp_id": 1, "sentence": "Wake me at Nine a.m.", "scenario": "alarm", "action": "set",
            "tokens": [{"surface": word} for word in ("Wake", "me", "at", "Nine", "a.m.")],
            "entities": [{"span": [3, 4], "type": "time"}],
            "recordings": [{"file": f"audio--{file}-{take}.flac"} for take in range(2)],
        }  # fmt: skip
        write(root / "dataset" / "slurp" / f"{file}.jsonl", json.dumps(item) + "\n")
        for recording in item["recordings"]:
            sound(root / "audio" / f"slurp_{kind}" / recording["file"])


def voicebank(root):
    for part, speakers in (("trainset_28spk", ("p226", "p228", "p287")), ("testset", ("p232",))):
        for speaker in speakers:
            for kind in ("noisy", "clean"):
                sound(root / f"{kind}_{part}_wav" / f"{speaker}_001.wav", 48000)


def libri2mix(root):
    for part in ("train-100", "dev", "test"):
        for kind in ("mix_clean", "mix_both", "s1", "s2", "noise"):
            sound(root / "wav16k" / "min" / part / kind / "1-2-3_4-5-6.wav")


def vctk(root):
    for speaker in ("p225", "p226"):
        for number in range(1, 60):
            sound(root / "wav48_silence_trimmed" / speaker / f"{speaker}_{number:03d}_mic1.flac", 48000, 0.01)
            write(root / "txt" / speaker / f"{speaker}_{number:03d}.txt", "Please call Stella.\n")
    (root / "txt" / "p226" / "p226_059.txt").unlink()


def speech(root):
    for number in range(3):
        sound(root / "deep" / f"{number}.flac", 22050)


def libritts(root):
    for part in ("train-clean-100", "dev-clean"):
        for number, text in enumerate(("Hello there.", "", "Good bye.")):
            stem = root / part / "103" / "1240" / f"103_1240_00000{number}_000000"
            sound(stem.with_suffix(".wav"), 24000)
            write(stem.with_suffix(".normalized.txt"), f"{text}\n")


def speech_commands(root):
    for word in ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "seven"):
        sound(root / word / "0a7c2a8d_nohash_0.wav")
    sound(root / "_background_noise_" / "white_noise.wav")


def quesst14(root):
    for split, folder in (("utterances", "Audio"), ("dev", "dev_queries"), ("eval", "eval_queries")):
        names = [f"{folder}/quesst14_{split}_{number}.wav" for number in range(2)]
        for name in names:
            sound(root / name)
        lines = [f"quesst14/{name} {language}" for name, language in zip(names, ("nnenglish", "czech"), strict=True)]
        write(root / "scoring" / f"language_key_{split}.lst", "\n".join(lines))
    for split in ("dev", "eval"):
        write(root / "scoring" / f"groundtruth_quesst14_{split}" / "truth.rttm", "LEXEME")


def fluent_speech_commands(root):
    for split in ("train", "valid", "test"):
        place = f"wavs/speakers/abc/{split}-1.wav"
        sound(root / place)
        header = ",path,speakerId,transcription,action,object,location\n"
        write(root / "data" / f"{split}_data.csv", f'{header}0,{place},abc,"Lights on, please",activate,lights,none\n')


def snips(root):
    lines = []
    for split in ("train", "valid", "test"):
        for number in range(2):
            sound(root / split / f"Ivy-{split}-{number}.wav")
        lines.append(f"Ivy-{split}-0 BOS PLAY SONGS EOS\tO O B-music_item PlayMusic")
    write(root / "all.iob.snips.txt", "\n".join(lines))


def vcc2020(root):
    for speaker in ("SEF1", "SEF2", "SEM1", "SEM2", "TEF1", "TEF2", "TEM1", "TEM2"):
        for number in (10001, 30001):
            sound(root / speaker / f"E{number}.wav", 24000)


# By the name of the corpus's module in wavcube_plugins.data.corpora.
LAYOUTS = {
    function.__name__: function
    for function in (
        *(librispeech, libritts, voxceleb, iemocap, slurp, voicebank, libri2mix, vctk, speech),
        *(speech_commands, quesst14, fluent_speech_commands, snips, vcc2020),
    )
}
