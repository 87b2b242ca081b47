"""The `wavcube` command: what each subcommand writes and prints, and what bad input gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.paths import GOLDEN

import wavcube_plugins
from wavcube_plugins import audio, cli, errors, load_model
from wavcube_plugins.cli import common, jobs
from wavcube_plugins.config import WavCubeConfig

COMMANDS = cli.COMMANDS

pytestmark = pytest.mark.filterwarnings("ignore:.*UNTRAINED")


@pytest.fixture(scope="module")
def model():
    with pytest.warns(UserWarning, match="UNTRAINED"):
        return load_model("tiny")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: two recordings, one of them in stereo at another rate, and a latent of the first."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(12345, 2))
    soundfile.write("mono.wav", noise[:, 0], 16000, "FLOAT")
    soundfile.write("stereo.flac", noise, 44100)
    return tmp_path


class Run:
    """Runs the command in this process on the tiny model and keeps what it printed."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *arguments, code=0):
        arguments = [str(argument) for argument in arguments]
        if arguments[0] in ("encode", "decode", "reconstruct", "extract", "info") and "--model" not in arguments:
            arguments += ["--model", "tiny"]
        self.code = cli.main(arguments)
        self.out, self.err = self.capsys.readouterr()
        assert self.code == code, self.err
        return self

    @property
    def error(self):
        """The one line of error; fails if there is more than one, or a traceback."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if "error: " in line]
        assert len(lines) == 1, self.err
        assert self.err.endswith(lines[0] + "\n")
        return lines[0]


@pytest.fixture
def run(capsys):
    return Run(capsys)


def encoded(model, path, **options):
    with torch.inference_mode():
        return model.encode(audio.read_audio(path)[None], **options)[0][0]


# The command itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(run, command):
    run(command, "--help")
    assert f"example:\n  wavcube {command} " in run.out or f"example:\n  wavcube {command}\n" in run.out


def test_every_example_is_accepted_by_the_parser(run, capsys):
    parser = cli.build_parser()
    examples = 0
    for command in COMMANDS:
        run(command, "--help")
        for line in run.out.split("example:\n")[1].splitlines():
            words = line.split()
            words = words[words.index("wavcube_plugins.cli" if words[0] == "torchrun" else "wavcube") + 1 :]
            assert parser.parse_args(words).command == command
            examples += 1
    assert examples >= len(COMMANDS)


def test_help_and_mistakes_import_nothing_heavy():
    program = (
        "import sys; from wavcube_plugins.cli import main\n"
        "for words in (['--help'], ['extract', '--help'], ['encode'], ['--version'], ['encode', 'missing.wav'],\n"
        "              ['manifest', 'missing', 'a.jsonl'], ['export', 'missing', 'out'],\n"
        "              ['install-s3prl', '--folder', '/nowhere']):\n"
        "    main(words)\n"
        "    assert not {'torch', 'numpy', 'tqdm', 'yaml', 'soundfile'} & set(sys.modules), words\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_command_imports_nothing_of_the_others(folder):
    program = (
        "import sys; from wavcube_plugins.cli import main\n"
        "main(['encode', 'mono.wav', '--model', 'tiny'])\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('wavcube_plugins.')}\n"
        "assert not rooms & {'pretraining', 'evaluation', 's3prl', 'espnet', 'speechbrain'}, rooms\n"
        "assert 'matplotlib' not in sys.modules and 'wavcube_plugins.superb.bench' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_documents_the_exit_codes(run):
    run("--help")
    listed = run.out.split("exit codes:\n")[1].split("\n\n")[0].splitlines()
    assert [int(line.split()[0]) for line in listed] == [errors.OK, errors.FAILED, errors.BAD_INPUT, errors.INTERRUPTED]


def test_without_a_model_it_says_which_one_it_takes(capsys, folder):
    for words in (["encode", "mono.wav"], ["info"]):
        assert cli.main(words) == 0
        [line] = capsys.readouterr().err.splitlines()
        assert "no --model given; using nano" in line
    assert cli.main(["encode", "mono.wav", "--model", "nano"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["encode"], "required: FILE"),
        (["extract", "corpus"], "required: OUT"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["encode", "a.wav", "--windows", "3"], "unrecognized arguments: --windows 3"),
        (["encode", "a.wav", "--window", "0"], "must be above 0, got 0"),
        (["encode", "a.wav", "--window", "nan"], "must be above 0, got nan"),
        (["encode", "a.wav", "--window", "long"], "invalid number value: 'long'"),
        (["encode", "a.wav", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["extract", "a", "b", "--workers", "0"], "must be at least 1, got 0"),
        (["extract", "a", "b", "--workers", "1.5"], "invalid whole number value: '1.5'"),
        (["manifest", "a", "b.jsonl", "--jobs", "0"], "must be at least 1, got 0"),
        (["export", "a", "b", "--checkpoint", "worst"], "invalid choice: 'worst'"),
        (["export", "a", "b", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_mistyped_arguments_are_one_line(capsys, arguments, reason):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert reason in error and "--help" in error


def test_without_a_command_it_lists_them(capsys):
    assert cli.main([]) == 2
    error = capsys.readouterr().err
    assert all(f"    {command} " in error or f"    {command}\n" in error for command in COMMANDS)


def test_version(run):
    run("--version")
    assert run.out == f"wavcube {wavcube_plugins.__version__}\n"


def test_the_installed_command_and_the_module_are_the_same(folder):
    installed = Path(sys.executable).with_name("wavcube")
    for start in ([installed], [sys.executable, "-m", "wavcube_plugins.cli"]):
        done = subprocess.run([*start, "encode", "missing.wav"], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == "wavcube encode: error: missing.wav: no such file or folder\n"


def test_ctrl_c_is_no_traceback(run, folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("wavcube_plugins.models.wavcube.WavCube.encode", interrupt)
    run("encode", "mono.wav", code=130)
    assert "interrupted" in run.err and "Traceback" not in run.err


def test_what_nobody_expected_is_one_line_and_a_hint(run, folder, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("wavcube_plugins.models.wavcube.WavCube.encode", fail)
    run("encode", "mono.wav", code=1)
    assert "ZeroDivisionError: two lines" in run.error and "WAVCUBE_DEBUG=1" in run.error
    monkeypatch.setenv("WAVCUBE_DEBUG", "1")
    run("encode", "mono.wav", code=1)
    assert "Traceback" in run.err


def test_a_value_error_is_bad_input_only_where_it_says_so(run, folder, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("wavcube_plugins.models.wavcube.WavCube.encode", fail)
    error = ValueError("not enough values to unpack")  # what a bug raises
    run("encode", "mono.wav", code=1)
    assert "ValueError: not enough values to unpack" in run.error and "WAVCUBE_DEBUG=1" in run.error
    run("encode", "mono.wav", "stereo.flac", code=1)
    assert "WAVCUBE_DEBUG=1" in run.error and "1 of 2" not in run.err
    error = errors.InputError("mono.wav: of no use")
    run("encode", "mono.wav", code=2)
    assert run.error == "wavcube encode: error: mono.wav: of no use"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried …"), MemoryError()])
def test_too_little_memory_names_the_remedy(run, folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("wavcube_plugins.models.wavcube.WavCube.encode", fail)
    run("encode", "mono.wav", code=1)
    assert "out of memory; try --window 60" in run.error
    run("encode", "mono.wav", "stereo.flac", code=1)
    assert run.err.count("out of memory; try --window 60") == 2


def test_a_reader_that_has_gone_is_no_traceback(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "wavcube_plugins.cli", "info", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert "BrokenPipe" not in error and "Traceback" not in error


def shell(command, **options):
    """Run a shell command in which `wavcube` is the command of this checkout."""
    program = f"wavcube() {{ '{sys.executable}' -m wavcube_plugins.cli \"$@\"; }}; {command}"
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.integration
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_stop_the_work(folder, closed):
    done = shell(f"wavcube encode mono.wav stereo.flac -o out --model tiny {closed}")
    assert done.returncode == 0, done.stderr
    for name in ("mono", "stereo"):
        assert np.load(f"out/{name}.npy").shape[1] == 16
    assert shell(f"wavcube encode missing.wav {closed}").returncode == 2
    assert shell(f"wavcube info tiny {closed}").returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["mono.wav", "out", "stereo.flac"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_stdout_is_one_line(folder):
    done = shell("wavcube info tiny >/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "wavcube info: error: no space left on device"
    assert "Exception ignored" not in done.stderr


@pytest.mark.integration
@pytest.mark.skipif(os.name != "posix", reason="there are no pipes with names elsewhere")
def test_pipes_are_read(folder, run):
    run("encode", "mono.wav", "-o", "file.npy")
    run("reconstruct", "mono.wav", "-o", "file.wav")
    done = shell(
        "wavcube encode <(cat mono.wav) -o pipe.npy --model tiny && cat mono.wav |"
        "wavcube reconstruct /dev/stdin -o pipe.wav --model tiny"
    )
    assert done.returncode == 0, done.stderr
    assert Path("pipe.npy").read_bytes() == Path("file.npy").read_bytes()
    assert Path("pipe.wav").read_bytes() == Path("file.wav").read_bytes()
    done = shell("wavcube encode <(cat mono.wav) --model tiny")
    assert done.returncode == 2 and "is a pipe; name the file for the result with --output" in done.stderr
    done = shell("wavcube encode <(echo not audio) -o x.npy --model tiny")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("wavcube encode: error: /dev/fd/")
    assert "/tmp" not in done.stderr


# encode, decode, reconstruct ------------------------------------------------------------------------------------------


def test_encode_writes_the_models_latent(run, folder, model):
    run("encode", "mono.wav")
    latent = np.load("mono.npy")
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, encoded(model, "mono.wav"), atol=1e-5)
    assert "mono.wav -> mono.npy" in run.out and "(38 frames of 16, float32, 0.77 s)" in run.out

    run("encode", "mono.wav", "--float16", "-o", "half.npy")
    assert np.load("half.npy").dtype == np.float16
    np.testing.assert_allclose(np.load("half.npy"), latent, atol=2e-3)


def test_encode_in_windows(run, folder, model):
    soundfile.write("long.wav", np.random.default_rng(0).normal(scale=0.1, size=64000), 16000)
    run("encode", "long.wav", "--window", "1")
    windowed = encoded(model, "long.wav", window_seconds=1.0)
    np.testing.assert_allclose(np.load("long.npy"), windowed, atol=1e-5)
    assert not np.allclose(windowed, encoded(model, "long.wav"), atol=1e-5)
    run("encode", "long.wav", "--window", "0.01", code=2)
    assert "window_seconds must be at least" in run.error
    run("encode", "long.wav", "mono.wav", "-o", "out", "--window", "0.01", code=2)
    assert "window_seconds must be at least" in run.error and not Path("out").exists()


def test_encode_in_bfloat16(run, folder, model):
    run("encode", "mono.wav", "--dtype", "bfloat16")
    latent = np.load("mono.npy")
    assert latent.dtype == np.float32
    difference = np.abs(latent - encoded(model, "mono.wav").numpy()).max()
    assert 1e-5 < difference < 0.5


def test_outputs_take_the_place_they_are_given(run, folder):
    run("encode", "mono.wav", "-o", "new/folder/latent.npy")
    assert Path("new/folder/latent.npy").is_file()
    run("encode", "mono.wav", "-o", "single")
    assert Path("single/mono.npy").is_file()
    run("encode", "mono.wav", "stereo.flac", "-o", "several")
    assert sorted(path.name for path in Path("several").iterdir()) == ["mono.npy", "stereo.npy"]
    Path("tree/inner").mkdir(parents=True)
    Path("mono.wav").rename("tree/inner/a.b.wav")
    Path("stereo.flac").rename("tree/c.flac")
    run("encode", "tree", "-o", "latents")
    assert Path("latents/inner/a.b.npy").is_file() and Path("latents/c.npy").is_file()
    run("decode", "latents", "-o", "heard")
    assert audio.read_info("heard/inner/a.b.wav").num_frames == 38 * 320
    assert "2 of 2 files done" in run.out


def test_decode_writes_the_models_waveform(run, folder, model):
    run("encode", "mono.wav")
    before = Path("mono.wav").read_bytes()
    run("decode", "mono.npy")
    assert Path("mono.wav").read_bytes() == before  # the recording keeps its name for itself
    waveform = audio.read_audio("mono.wavcube.wav")
    with torch.inference_mode():
        expected, _ = model.decode(torch.from_numpy(np.load("mono.npy"))[None])
    assert waveform.shape == (38 * 320,)
    torch.testing.assert_close(waveform, expected[0].clamp(-1, 1), atol=1e-4, rtol=0)

    run("decode", "mono.npy", "-o", "windowed.flac", "--window", "0.8")
    assert audio.read_audio("windowed.flac").shape == (38 * 320,)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_decode_takes_every_precision_and_a_batch_of_one(run, folder, dtype):
    np.save("a.npy", np.random.default_rng(0).normal(size=(1, 5, 16)).astype(dtype))
    run("decode", "a.npy", "-o", "a.wav")
    assert audio.read_info("a.wav").num_frames == 5 * 320


def test_reconstruct_keeps_the_length(run, folder, model):
    run("reconstruct", "mono.wav")
    with torch.inference_mode():
        expected, _ = model.reconstruct(audio.read_audio("mono.wav")[None])
    waveform = audio.read_audio("mono.wavcube.wav")
    assert waveform.shape == (12345,)
    torch.testing.assert_close(waveform, expected[0].clamp(-1, 1), atol=1e-4, rtol=0)
    run("reconstruct", "mono.wav", "-o", "mono.ogg")
    assert audio.read_info("mono.ogg").num_frames == 12345


def test_stereo_at_another_rate_is_mixed_and_it_says_so_once(run, folder):
    run("reconstruct", "stereo.flac", "-o", "out.wav")
    assert audio.read_info("out.wav") == audio.AudioInfo(16000, -(-12345 * 160 // 441), 1)
    notes = [line for line in run.err.splitlines() if "channels" in line]
    assert notes == ["wavcube: stereo.flac: 2 channels, mixed down to one"]


@pytest.mark.parametrize("samples", [1, 399, 400, 720])
def test_short_and_silent_audio_works(run, folder, samples):
    soundfile.write("short.wav", np.zeros(samples), 16000)
    run("encode", "short.wav")
    assert np.load("short.npy").shape == (max(1, (samples - 400) // 320 + 1), 16)
    assert np.isfinite(np.load("short.npy")).all()
    run("reconstruct", "short.wav")
    assert audio.read_info("short.wavcube.wav").num_frames == samples


def test_long_recordings_show_their_progress(run, folder, monkeypatch):
    monkeypatch.setattr(jobs, "LONG", 0.5)
    for words in (["encode", "mono.wav"], ["decode", "mono.npy"], ["reconstruct", "mono.wav", "--window", "0.8"]):
        run(*words)
        assert "100%" in run.err and "s of audio" in run.err


def test_files_that_cannot_be_used_do_not_stop_the_others(run, folder):
    Path("text.wav").write_text("not audio")
    run("reconstruct", "text.wav", "mono.wav", "-o", "out", code=1)
    assert "1 of 2 files failed" in run.error
    assert "failed: text.wav: not readable as audio" in run.err
    assert "1 of 2 files done" in run.out
    assert audio.read_info("out/mono.wav").num_frames == 12345
    assert not Path("out/text.wav").exists()


def _no_audio(folder):
    Path("empty").mkdir()
    Path("text.wav").write_text("not audio")
    Path("zero.wav").touch()
    soundfile.write("nosamples.wav", np.zeros(0), 16000)
    soundfile.write("nan.wav", np.array([0.0, np.nan]), 16000, "FLOAT")


BAD_AUDIO = {
    "missing": (["missing.wav"], "missing.wav: no such file or folder"),
    "folder without output": (["."], "is a folder; name the folder for the results with --output"),
    "folder without audio": (["empty", "-o", "out"], "empty: no audio files in this folder"),
    "not audio": (["text.wav"], "text.wav: not readable as audio, format not recognised"),
    "empty file": (["zero.wav"], "zero.wav: not readable as audio"),
    "no samples": (["nosamples.wav"], "nosamples.wav: has no samples"),
    "NaN": (["nan.wav"], "nan.wav: has samples that are NaN or infinite"),
    "output is a folder's file": (["mono.wav", "stereo.flac", "-o", "text.wav"], "text.wav: is a file; results of"),
    "below a file": (["mono.wav", "-o", "text.wav/deeper/x.npy"], "text.wav is a file"),
    "unknown model": (["mono.wav", "--model", "nanoo"], "nanoo: no such file or folder; known names are nano"),
    "foreign model": (["mono.wav", "--model", "text.wav"], "text.wav: expected a folder, a .safetensors file"),
    "unknown device": (["mono.wav", "--device", "gpu"], "--device gpu: unknown; use auto, cpu, cuda"),
    "unknown CPU": (["mono.wav", "--device", "cpu:x"], "--device cpu:x: unknown"),
    "device that is not there": (["mono.wav", "--device", "cuda:99"], "--device cuda:99: "),
}


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
@pytest.mark.parametrize("case", BAD_AUDIO)
def test_bad_audio_is_one_line_and_exit_code_2(run, folder, command, case):
    _no_audio(folder)
    arguments, reason = BAD_AUDIO[case]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    if command == "reconstruct":
        arguments = [argument.replace(".npy", ".wav") for argument in arguments]
    run(command, *arguments, code=2)
    assert reason in run.error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["encode", "mono.wav", "-o", "mono.xyz"], "mono.xyz: latents are written as .npy"),
        (["encode", "mono.wav", "sub/mono.flac", "-o", "out"], "both would be written to out/mono.npy"),
        (["reconstruct", "mono.wav", "-o", "./mono.wav"], "mono.wav: is an input and would be overwritten"),
        (["reconstruct", "mono.wav", "taken.wav", "-o", "."], "mono.wav: is an input and would be overwritten"),
        (["reconstruct", "mono.wav", "-o", "mono.xyz"], "mono.xyz: cannot write audio as '.xyz'"),
        (["encode", "mono.wav", "-o", "folder.npy"], None),
        (["encode", "taken.wav"], "taken.npy: is a folder, where the result of taken.wav"),
    ],
)
def test_bad_outputs(run, folder, arguments, reason):
    Path("sub").mkdir()
    Path("folder.npy").mkdir()
    Path("taken.npy").mkdir()
    soundfile.write("taken.wav", np.zeros(800), 16000)
    Path("stereo.flac").rename("sub/mono.flac")
    run(*arguments, code=2 if reason else 0)
    if reason:
        assert reason in run.error
        assert "UNTRAINED" not in run.err  # known before the model is loaded, let alone at work
    else:
        assert Path("folder.npy/mono.npy").is_file()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(run, folder):
    Path("closed").mkdir(mode=0o500)
    run("encode", "mono.wav", "-o", "closed/a.npy", code=2)
    assert "permission denied" in run.error
    run("extract", ".", "closed/out", code=2)
    assert "permission denied" in run.error


BAD_LATENTS = {
    "another model's": (np.zeros((5, 32), np.float32), "has 32 channels, the model's latent has 16"),
    "transposed": (np.zeros((16, 5), np.float32), "has 5 channels, the model's latent has 16"),
    "a vector": (np.zeros(16, np.float32), r"expected a latent of shape (frames, 16), found (16,)"),
    "a batch": (np.zeros((2, 5, 16), np.float32), r"expected a latent of shape (frames, 16), found (2, 5, 16)"),
    "no frames": (np.zeros((0, 16), np.float32), r"found (0, 16)"),
    "whole numbers": (np.zeros((5, 16), np.int64), "floating point numbers, found int64"),
    "NaN": (np.full((5, 16), np.nan, np.float32), "NaN or infinite"),
    "objects": (np.array([{"code": 1}], dtype=object), "not a readable .npy file"),
    "text": (b"not numpy", "not a readable .npy file"),
    "cut": (b"\x93NUMPY\x01\x00v\x00{'descr'", "not a readable .npy file"),
    "nothing": (b"", "not a readable .npy file"),
    "half an archive": (b"PK\x03\x04 and so on", "not a readable .npy file"),
    "a header without end": (b"\x93NUMPY\x01\x00\x02\x00({", "not a readable .npy file"),
}


@pytest.mark.parametrize("case", BAD_LATENTS)
def test_bad_latents_are_one_line_and_exit_code_2(run, folder, case):
    content, reason = BAD_LATENTS[case]
    if isinstance(content, bytes):
        Path("bad.npy").write_bytes(content)
    else:
        np.save("bad.npy", content, allow_pickle=True)
    run("decode", "bad.npy", code=2)
    assert "bad.npy: " in run.error and reason in run.error
    assert not Path("bad.wavcube.wav").exists()


def test_archives_and_recordings_are_no_latents(run, folder):
    np.savez("bad.npz", np.zeros((5, 16)))
    run("decode", "bad.npz", code=2)
    assert "an .npz archive" in run.error
    run("decode", "mono.wav", code=2)
    assert "mono.wav: not a readable .npy file" in run.error
    run("decode", ".", "-o", "out", code=2)
    assert "no .npy files" in run.error


# extract --------------------------------------------------------------------------------------------------------------


def test_extract_and_again(run, folder, model):
    run("extract", ".", "out")
    assert "2 utterances extracted" in run.out and "x real time" in run.out and "h/s" in run.out
    assert "2 channels, mixed" in run.err
    latent = np.load("out/npy/mono.npy")
    assert latent.dtype == np.float16
    np.testing.assert_allclose(latent, encoded(model, "mono.wav"), rtol=1e-3, atol=2e-4)
    run("extract", ".", "out")
    assert "0 utterances extracted; 2 were there already" in run.out
    run("extract", ".", "out", "--dtype", "bfloat16", code=2)
    assert "dtype float32, this run has bfloat16" in run.error


def test_extract_a_manifest_with_failures(run, folder):
    Path("text.wav").write_text("not audio")
    Path("list").write_text("one mono.wav\ntwo text.wav\nthree missing.wav\n")
    run("extract", "list", "out", "--format", "scp", "--root", ".", "--batch-seconds", "5", "--workers", "1", code=1)
    assert "2 of 3 utterances failed; all are in out/failed.tsv" in run.error
    assert "failed: two: not readable as audio" in run.err
    assert "failed: three: no such file" in run.err
    assert len(Path("out/failed.tsv").read_text().splitlines()) == 3
    assert Path("out/feats_shape").read_text() == "one 38,16\n"


def test_extract_counts_notes_and_failures_beyond_the_first(run, folder, monkeypatch):
    monkeypatch.setattr(common, "SHOWN", 3)
    lines = []
    for number in range(5):
        soundfile.write(f"{number}.wav", np.zeros((400, 2)), 16000)
        lines += [f"{number}.wav\n", f"missing{number}.wav\n"]
    Path("list.txt").write_text("".join(lines))
    run("extract", "list.txt", "out", "--device", "cpu", code=1)
    assert run.err.count("failed: ") == 3
    assert "2 more than shown" in run.err
    # The model's own note counts as well.
    assert run.err.count("mixed down") == 2
    assert "3 more notes" in run.err


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (["missing", "out"], {}, "missing: no such file or folder"),
        (["empty", "out"], {}, "empty: no audio files in this folder"),
        (["list.txt", "out"], {}, "list.txt: this manifest lists nothing"),
        (["bad.scp", "out"], {}, "bad.scp, line 1: expected an id and a path"),
        (["mono.wav", "list.txt"], {}, "list.txt: is a file, not a folder"),
        (["mono.wav", "list.txt/out"], {}, "not a directory"),
        (["mono.wav", "out", "--root", "missing"], {}, "--root missing: no such folder"),
        (["mono.wav", "out"], {"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 in the environment"),
        (["mono.wav", "out"], {"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x and WORLD_SIZE=2 in the environment"),
    ],
)
def test_bad_extractions(run, folder, monkeypatch, arguments, environment, reason):
    Path("empty").mkdir()
    Path("list.txt").touch()
    Path("bad.scp").write_text("id\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run("extract", *arguments, code=2)
    assert reason in run.error
    assert not Path("out").exists()


def test_a_process_that_ends_before_the_others_says_so(run, folder, monkeypatch):
    Path("list.txt").write_text("mono.wav\nmissing.wav\n")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    # torchrun stops all processes when one exits with an error: not while there is work left.
    run("extract", "list.txt", "out")
    assert "process 2 of 2: 0 utterances extracted" in run.out
    assert "1 utterance is with another process" in run.err
    monkeypatch.setenv("RANK", "0")
    run("extract", "list.txt", "out", code=1)
    assert "1 of 2 utterances failed" in run.error


# manifest, export -----------------------------------------------------------------------------------------------------


def test_manifest_lists_a_folder(run, folder):
    run("manifest", ".", "list.jsonl")
    assert run.out == "list.jsonl: 2 utterances, 0.000 h\n" and "100%" in run.err
    lines = [json.loads(line) for line in Path("list.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "id": "mono", "path": str(folder / "mono.wav"), "duration": 0.771563, "sample_rate": 16000,
    }  # fmt: skip
    run("manifest", ".", "list.jsonl", "--relative", "--jobs", "1")
    assert json.loads(Path("list.jsonl").read_text().splitlines()[1])["path"] == "stereo.flac"
    run("extract", "list.jsonl", "latents")
    assert "2 utterances extracted" in run.out


def test_manifest_names_what_it_leaves_out(run, folder, monkeypatch):
    Path("text.wav").write_text("not audio")
    Path("list.scp").write_text("a mono.wav\nb text.wav\nc gone.wav\nd sox x.sph -t wav - |\ne stereo.flac\n")
    run("manifest", "list.scp", "list.jsonl", "--root", ".", code=1)
    assert run.error == "wavcube manifest: error: 3 of 5 entries cannot be used"
    assert "wavcube: left out: b: text.wav: not readable as audio" in run.err.replace(f"{folder}/", "")
    assert "wavcube: left out: entry 4: list.scp, line 4: a command, which is not run" in run.err
    assert [json.loads(line)["id"] for line in Path("list.jsonl").read_text().splitlines()] == ["a", "e"]
    monkeypatch.setattr(common, "SHOWN", 1)
    run("manifest", "list.scp", "list.jsonl", code=1)
    assert run.error == "wavcube manifest: error: 3 of 5 entries cannot be used, 2 more than shown"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing", "a.jsonl"], "missing: no such file or folder"),
        (["empty", "a.jsonl"], "empty: no audio files in this folder"),
        (["list.txt", "a.jsonl"], "list.txt: none of 2 entries can be used; the first because: "),
        (["mono.wav", "a.json"], "a.json: a manifest is written as .jsonl"),
        (["mono.wav", "a.jsonl.gz"], "a.jsonl.gz: a manifest is written as .jsonl"),
        (["mono.wav", "folder.jsonl"], "folder.jsonl: is a folder, not a file"),
        (["mono.wav", "list.txt/a.jsonl"], "list.txt is a file"),
        (["own.jsonl", "own.jsonl"], "own.jsonl: is the source and would be overwritten"),
        (["mono.wav", "a.jsonl", "--root", "missing"], "--root missing: no such folder"),
    ],
)
def test_bad_manifests(run, folder, arguments, reason):
    Path("empty").mkdir()
    Path("folder.jsonl").mkdir()
    Path("list.txt").write_text("a.wav\nb.wav\n")
    Path("own.jsonl").write_text('{"path": "mono.wav"}\n')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    run("manifest", *arguments, code=2)
    assert reason in run.error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.fixture
def trained(folder):
    """The folder of a run of stage 1 with a validated checkpoint, the best, and a later one."""
    from wavcube_plugins.models.wavlm import WavLM
    from wavcube_plugins.pretraining import runs

    encoder = WavLM(WavCubeConfig.preset("tiny").wavlm).eval()
    encoder.metadata = {"source": f"{folder}/models/encoder"}
    start = runs.start_stage1(runs.configure("tiny", encoder), encoder, discriminator_width=0.02)
    runs.write_run("run", start, 1, {"train": "secret", "batch_size": 12, "lr": 5e-4, "adversarial_from": None})
    for step, meta in ((2000, "mel: 0.75\n"), (2500, "")):
        checkpoint = Path("run/save") / f"CKPT+{step}"
        checkpoint.mkdir(parents=True)
        start.model.decoder.layer_norm.bias.data.fill_(step)
        torch.save(runs.trained_weights(start.model, 1), checkpoint / "model.ckpt")
        for part in ("discriminators.ckpt", "training.ckpt", "brain.ckpt"):
            (checkpoint / part).touch()
        (checkpoint / "CKPT.yaml").write_text(f"unixtime: {step}.0\nstep: {step}\n{meta}")
    lines = [{"step": 1000, "valid STOI": 0.1}, {"step": 2000, "valid mel": 0.75, "valid STOI": 0.871}, {"step": 2020}]
    Path("run/progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 20')
    return folder


def front_matter(card):
    import yaml

    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def test_export_writes_a_model_that_loads_and_its_card(run, trained):
    run("export", "run", "mine")
    assert run.out.startswith("mine: stage 1, step 2500, ") and run.out.endswith("use it with --model mine\n")
    assert "states no licence or no training data; add them with --license and --data" in run.err
    run("reconstruct", "mono.wav", "--model", "mine")
    run("info", "mine", "--json")
    description = json.loads(run.out)
    assert description["trained"] and description["metadata"]["origin"] == "backbone models/encoder"
    assert load_model("mine").decoder.layer_norm.bias[0] == 2500
    head, text = front_matter(Path("mine/README.md").read_text())
    assert head["library_name"] == "wavcube_plugins" and "wavcube" in head["tags"]
    assert "license" not in head and "datasets" not in head
    heard = {"waveforms": torch.randn(1, 4000), "lengths": None}
    exec(text.split("```python\n")[1].split("```")[0], heard)
    assert heard["waveforms"].shape == (1, 3840) and not heard["latent"].requires_grad
    for part in (
        "# mine\n",
        "| latent | 16 numbers per frame, 50 frames per second |",
        "| steps | 2,500 |",
        "| data | not stated |",
        "| crops per step and process | 12 |",
        "| discriminators from step | 5000 |",
        "| log-mel distance | 0.75 |",
        "| STOI | 0.871 |",
        "validation at step 2,000",
        'load_model("mine")',
        "-u wavcube -k mine",
        "wavcube reconstruct speech.wav --model mine",
        "has not stated one",
    ):
        assert part in text
    published = Path("mine/README.md").read_text() + Path("mine/config.json").read_text()
    assert str(trained) not in published and "secret" not in published  # nothing of this machine


def test_export_takes_the_best_checkpoint_in_half_precision_with_scores(run, trained):
    Path("scores.json").write_text('{"test-clean": {"STOI": 0.9712, "WER | %": 4}, "test-other": {"STOI": 0.95}}')
    words = ["--license", "cc-by-4.0", "--data", "openslr/librispeech_asr, mozilla-foundation/common_voice_17_0"]
    run("export", "run", "mine", "--checkpoint", "best", "--dtype", "float16", "--scores", "scores.json", *words)
    assert "step 2000" in run.out and "states no" not in run.err
    assert load_model("mine").decoder.layer_norm.bias[0] == 2000
    assert Path("mine/model.safetensors").stat().st_size < 2.2 * sum(p.numel() for p in load_model("mine").parameters())
    head, text = front_matter(Path("mine/README.md").read_text())
    assert head["license"] == "cc-by-4.0"
    assert head["datasets"] == ["openslr/librispeech_asr", "mozilla-foundation/common_voice_17_0"]
    assert (
        "| test set | STOI | WER \\| % |\n| --- | --- | --- |\n| test-clean | 0.9712 | 4 |\n| test-other | 0.95 |  |"
        in text
    )
    assert json.loads(Path("mine/config.json").read_text())["metadata"]["license"] == "cc-by-4.0"
    description = json.loads(Path("run/run.json").read_text())
    settings = {**description["settings"], "adversarial_from": "never", "processes": 2}
    earlier = [{"until": 1500, "settings": {"train": "secret", "lr": 1e-3}}, {"until": 1700, "settings": {"root": 1}}]
    Path("run/run.json").write_text(json.dumps({**description, "settings": settings, "earlier": earlier}))
    run("export", "run", "mine")
    text = Path("mine/README.md").read_text()
    assert "| processes | 2 |" in text and "| discriminators from step | never |" in text
    assert "| until step 1,500 | highest learning rate 0.001 |" in text and "secret" not in text and "1,700" not in text
    Path("notes.md").write_text("## Who speaks\n\nTwelve readers.\n")
    run("export", "run", "mine", "--data", "960 h of audiobooks", "--notes", "notes.md")
    head, text = front_matter(Path("mine/README.md").read_text())
    assert "datasets" not in head and "| data | 960 h of audiobooks |" in text
    assert "## Who speaks\n\nTwelve readers.\n\n## Use" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing", "new"], "missing: no such folder"),
        (["mono.wav", "new"], "mono.wav: is a file, not the folder of a run"),
        ([".", "new"], ".: is not the folder of a training run, it has no run.json"),
        (["begun", "new"], "begun: this run has no checkpoint yet"),
        (["run", "mono.wav"], "mono.wav: is a file, not a folder"),
        (["run", "run"], "run: is the run itself"),
        (["run", "mono.wav/new"], "mono.wav is a file"),
        (["run", "new", "--scores", "missing.json"], "missing.json: no such file"),
        (["run", "new", "--scores", "text.json"], "text.json: not JSON"),
        (["run", "new", "--scores", "list.json"], "scores must be an object such as"),
        (["run", "new", "--scores", "none.json"], "scores must be an object such as"),
        (["run", "new", "--notes", "missing.md"], "missing.md: no such file"),
        (["run", "new", "--notes", "mono.wav"], "mono.wav: not a text file"),
    ],
)
def test_bad_exports(run, trained, arguments, reason):
    Path("text.json").write_text("STOI 0.9")
    Path("list.json").write_text("[0.9]")
    Path("none.json").write_text('{"a": {"STOI": true}}')
    Path("begun").mkdir()
    Path("begun/run.json").write_text(Path("run/run.json").read_text())
    run("export", *arguments, code=2)
    assert reason in run.error
    assert not Path("new").exists()


# info, convert, compare -----------------------------------------------------------------------------------------------


def test_info_prints_an_aligned_table(run, model):
    run("info", "tiny")
    rows = dict(line.split("  ", 1) for line in run.out.splitlines())
    assert {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in run.out.splitlines()} != set()
    values = {name: value.strip() for name, value in rows.items()}
    assert values["weights"] == "UNTRAINED, random"
    assert values["sample rate"] == "16000 Hz"
    assert values["latent"].startswith("16 channels at 50 Hz")
    total = sum(weight.numel() for weight in model.parameters())
    assert values["parameters, total"] == f"{total:,}"


def test_info_as_json(run, model):
    run("info", "--json")
    description = json.loads(run.out)
    assert description["latent_dim"] == 16 and description["frame_rate"] == 50
    parts = description["parameters"]
    assert parts["total"] == sum(count for name, count in parts.items() if name != "total")
    assert WavCubeConfig.from_dict(description["config"]) == model.config
    assert description["trained"] is False and description["file_size"] is None
    run("info", "nope", code=2)
    assert "nope: no such file or folder" in run.error


@pytest.mark.parametrize("stage", [1, 2])
def test_convert_makes_a_folder_that_loads(run, folder, stage):
    source = GOLDEN / f"official_stage{stage}.ckpt"
    run("convert", source, "converted")
    assert "use it with --model converted" in run.out
    assert Path("converted/model.safetensors").stat().st_size < source.stat().st_size
    run("info", "converted", "--json")
    description = json.loads(run.out)
    assert description["trained"] is True and description["metadata"]["stage"] == str(stage)
    assert description["file_size"] == Path("converted/model.safetensors").stat().st_size
    run("convert", source, "nano")
    assert "use it with --model ./nano" in run.out  # `nano` alone is the packaged model
    run("encode", "mono.wav", "--model", "converted")
    run("encode", "mono.wav", "--model", source, "-o", "direct.npy")
    np.testing.assert_array_equal(np.load("mono.npy"), np.load("direct.npy"))

    run("convert", source, "half", "--dtype", "bfloat16")
    assert Path("half/model.safetensors").stat().st_size < 0.6 * description["file_size"]


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        ("missing.ckpt", "new", "missing.ckpt: no such file"),
        (".", "new", ".: is a folder, not a .ckpt file"),
        ("text.ckpt", "new", "text.ckpt: expected a "),
        ("cut.ckpt", "new", "cut.ckpt: expected a PyTorch checkpoint, found a truncated or foreign file"),
        (GOLDEN / "official_stage1.ckpt", "mono.wav", "mono.wav: is a file, not a folder"),
        (GOLDEN / "official_stage1.ckpt", "mono.wav/new", "mono.wav/new: cannot be written"),
    ],
)
def test_bad_conversions(run, folder, source, destination, reason):
    Path("text.ckpt").write_text("not a checkpoint")
    whole = (GOLDEN / "official_stage1.ckpt").read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    run("convert", source, destination, code=2)
    assert reason in run.error
    assert not Path("new").exists()


@pytest.fixture
def speech(folder):
    """Something PESQ and STOI take for speech: noise in syllables, and a distorted copy."""
    random = np.random.default_rng(0)
    noise = random.normal(scale=0.1, size=48000) * (np.sin(np.arange(48000) / 16000 * 2 * np.pi * 3) > 0)
    soundfile.write("speech.wav", noise, 16000)
    soundfile.write("worse.wav", noise[:40000] + random.normal(scale=0.03, size=40000), 16000)
    return folder


def test_compare_prints_scores_and_saves_a_picture(run, speech):
    run("compare", "speech.wav", "worse.wav")
    printed = run.out.replace("mel distance", "mel").replace("voice similarity", "voice")
    rows = dict(line.split(maxsplit=1) for line in printed.splitlines())
    assert list(rows) == ["STOI", "PESQ-WB", "SI-SDR", "mel", "DNSMOS", "voice", "compared", "picture"]
    assert 1 <= float(rows["DNSMOS"]) <= 5 and 0 < float(rows["voice"]) <= 1
    assert 0.5 < float(rows["STOI"]) < 1.0
    assert 1.0 < float(rows["PESQ-WB"]) < 4.6
    assert float(rows["SI-SDR"].removesuffix(" dB")) == pytest.approx(20 * np.log10(0.1 / np.sqrt(2) / 0.03), abs=0.5)
    assert rows["compared"] == "2.50 s"
    assert "lengths differ by 8000 samples" in run.err
    assert Path("worse.comparison.png").read_bytes().startswith(b"\x89PNG")

    run("compare", "speech.wav", "speech.wav", "--picture", "pictures/same.svg", "--json")
    scores = json.loads(run.out)
    assert scores["stoi"] == pytest.approx(1, abs=1e-3) and scores["mel_distance"] == 0
    assert scores["picture"] == "pictures/same.svg" and Path("pictures/same.svg").is_file()


def test_compare_leaves_the_folder_of_the_estimate_alone(run, speech):
    Path("corpus").mkdir()
    Path("worse.wav").rename("corpus/worse.wav")
    run("compare", "speech.wav", "corpus/worse.wav")
    assert Path("worse.comparison.png").is_file()
    Path("pictures").mkdir()
    run("compare", "speech.wav", "corpus/worse.wav", "-o", "pictures")
    run("compare", "speech.wav", "corpus/worse.wav", "--output", "pictures/own.svg")
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["own.svg", "worse.comparison.png"]
    assert [path.name for path in Path("corpus").iterdir()] == ["worse.wav"]


def test_compare_prints_scores_whatever_becomes_of_the_picture(run, speech):
    Path("speech.wav").rename("$a_$.wav")
    run("compare", "$a_$.wav", "worse.wav")
    assert Path("worse.comparison.png").is_file()
    run("compare", "$a_$.wav", "worse.wav", "--picture", "a.xyz", code=2)
    assert "STOI" in run.out and "'xyz' is not supported" in run.error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["speech.wav", "missing.wav"], "missing.wav: no such file"),
        (["speech.wav", "."], ".: is a folder, not a file"),
        (["text.wav", "speech.wav"], "text.wav: not readable as audio"),
        (["speech.wav", "worse.wav", "--picture", "worse.wav"], "worse.wav: is an input and would be overwritten"),
        (["speech.wav", "worse.wav", "--picture", "a.xyz"], "'xyz' is not supported"),
        (["speech.wav", "worse.wav", "--picture", "text.wav/a.png"], "text.wav"),
    ],
)
def test_bad_comparisons(run, speech, arguments, reason):
    Path("text.wav").write_text("not audio")
    run("compare", *arguments, code=2)
    assert reason in run.error


# s3prl ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3prl_checkout(tmp_path):
    checkout = tmp_path / "s3prl-checkout"
    (checkout / "s3prl" / "upstream").mkdir(parents=True)
    (checkout / "s3prl" / "hub.py").write_text("from s3prl.upstream.example.hubconf import *\n")
    return checkout


def test_install_s3prl_puts_the_hook_in_place(run):
    run("install-s3prl")  # `make env` has done it before
    assert "hook" in run.out and run.out.count("\n") == 1


def test_the_s3prl_folder_comes_and_goes(run, s3prl_checkout):
    before = {path: path.read_bytes() for path in s3prl_checkout.rglob("*.py")}
    run("install-s3prl", "--folder", s3prl_checkout)
    assert (s3prl_checkout / "s3prl" / "upstream" / "wavcube" / "hubconf.py").is_file()
    assert "wavcube" in (s3prl_checkout / "s3prl" / "hub.py").read_text()
    run("uninstall-s3prl", "--folder", s3prl_checkout)
    assert run.out.startswith("restored ")
    assert {path: path.read_bytes() for path in s3prl_checkout.rglob("*.py")} == before
    run("install-s3prl")
    assert "already" in run.out  # the hook of this environment stayed where it is


def test_no_s3prl_there(run, tmp_path):
    run("install-s3prl", "--folder", tmp_path, code=2)
    assert f"{tmp_path}: no s3prl there" in run.error
