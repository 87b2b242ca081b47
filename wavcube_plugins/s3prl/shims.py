"""Small repairs that let s3prl 0.4 run beside libraries that have moved on since its release.

Each function mends one thing, does nothing where that thing is in order, and returns whether it did something.
`wavcube_plugins.s3prl.run` applies them all; nothing else does.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from wavcube_plugins.audio import read_info, resample
from wavcube_plugins.files import atomic_path


def audio_backend() -> bool:
    """Give torchaudio from 2.9 on back the function `set_audio_backend`, which has nothing left to choose."""
    import torchaudio

    if hasattr(torchaudio, "set_audio_backend"):
        return False
    torchaudio.set_audio_backend = lambda backend: None
    return True


def audio_files() -> bool:
    """Read and write audio with soundfile where torchaudio, from 2.9 on, would need torchcodec for it."""
    import torchaudio

    if hasattr(torchaudio, "info"):
        return False
    torchaudio.info = read_info
    if find_spec("torchcodec") is None:
        torchaudio.load, torchaudio.save = _load, _save
    return True


def sox_effects() -> bool:
    """Replace torchaudio's sox effects where they are gone (from 2.9 on) or the system has no libsox.

    The effects that s3prl's tasks use are there: channels, rate, gain, and silence in speaker verification's form.
    """
    import torchaudio

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchaudio.sox_effects.effect_names()
    except (AttributeError, ImportError, OSError, RuntimeError):
        module = ModuleType("torchaudio.sox_effects")
        module.apply_effects_file, module.apply_effects_tensor = apply_effects_file, apply_effects_tensor
        torchaudio.sox_effects = sys.modules[module.__name__] = module
        return True
    return False


def hub_functions() -> bool:
    """Give huggingface_hub back what s3prl's `--hub huggingface` calls: a login by password and positional arguments.

    The token is the one `hf auth login` stored; public models need none.
    """
    import huggingface_hub

    mended = False
    if not hasattr(huggingface_hub, "HfFolder"):
        huggingface_hub.HfFolder = type("HfFolder", (), {"get_token": staticmethod(huggingface_hub.get_token)})
        mended = True
    if not hasattr(huggingface_hub, "Repository"):
        huggingface_hub.Repository = _Repository
        mended = True
    if not hasattr(huggingface_hub.HfApi, "login"):
        huggingface_hub.HfApi.login = lambda self, username=None, password=None: huggingface_hub.get_token()
        huggingface_hub.HfFolder.save_token = staticmethod(lambda token: None)  # it is stored already
        mended = True
    download = huggingface_hub.snapshot_download
    if inspect.signature(download).parameters["revision"].kind is inspect.Parameter.KEYWORD_ONLY:

        def snapshot_download(repo_id, revision=None, use_auth_token=None, **arguments):
            return download(repo_id, revision=revision, **arguments)

        huggingface_hub.snapshot_download = snapshot_download
        mended = True
    return mended


def cuda_calls() -> bool:
    """Let `tensor.cuda()` leave a tensor where it is on a machine without a GPU.

    Speaker verification's code calls it whatever `--device` says.
    """
    if torch.cuda.is_available() or getattr(Tensor.cuda, "by_wavcube", False):
        return False

    def cuda(self, device=None, non_blocking=False, memory_format=torch.preserve_format):
        return self

    cuda.by_wavcube = True
    Tensor.cuda = cuda
    return True


def loader_workers() -> bool:
    """Start at most WAVCUBE_S3PRL_WORKERS processes per data loader, where that is set in the environment.

    The configurations ask for many, and some of s3prl's tasks for twelve whatever the configuration says.
    """
    most = os.environ.get(WORKERS)
    if not most or getattr(DataLoader.__init__, "by_wavcube", False):
        return False
    initialise = DataLoader.__init__

    @functools.wraps(initialise)
    def limited(self, *arguments, num_workers=0, **options):
        initialise(self, *arguments, num_workers=min(num_workers, int(most)), **options)

    limited.by_wavcube = True
    DataLoader.__init__ = limited
    return True


def whole_checkpoints() -> bool:
    """Let `torch.save` write under another name first, where WAVCUBE_S3PRL_WHOLE is set in the environment.

    s3prl resumes from the newest checkpoint; a process killed while it saves would leave half of one.
    """
    if not os.environ.get(WHOLE) or getattr(torch.save, "by_wavcube", False):
        return False
    write = torch.save

    @functools.wraps(write)
    def save(obj, f, *arguments, **options):
        if not isinstance(f, (str, os.PathLike)):
            return write(obj, f, *arguments, **options)
        with atomic_path(f) as temporary:
            write(obj, os.fspath(temporary), *arguments, **options)

    save.by_wavcube = True
    torch.save = save
    return True


# Set by `wavcube superb` for its processes.
WORKERS, WHOLE = "WAVCUBE_S3PRL_WORKERS", "WAVCUBE_S3PRL_WHOLE"
ALL = (audio_backend, audio_files, sox_effects, hub_functions, cuda_calls, loader_workers, whole_checkpoints)


def apply_effects_tensor(
    tensor: Tensor, sample_rate: int, effects: list[list[str]], channels_first: bool = True
) -> tuple[Tensor, int]:
    """Apply sox effects to a waveform as `torchaudio.sox_effects.apply_effects_tensor` does.

    Args:
        tensor: (channels, T) or, if not `channels_first`, (T, channels).
        sample_rate: Its rate in Hz.
        effects: Names with their arguments: channels, rate, gain (dB), silence (as `remove_silence` has it).

    Returns:
        The waveform in the same layout, and its rate.

    Raises:
        ValueError: another effect, or one of these in another form.
    """
    waveform = tensor if channels_first else tensor.t()
    for name, *values in effects:
        if name == "channels":
            if int(values[0]) < len(waveform):
                waveform = waveform.mean(dim=0, keepdim=True)
            waveform = waveform.expand(int(values[0]), -1)
        elif name == "rate":
            waveform, sample_rate = resample(waveform, sample_rate, int(values[0])), int(values[0])
        elif name == "gain":
            waveform = (waveform * 10 ** (float(values[0]) / 20)).clamp(-1, 1)
        elif name == "silence" and len(waveform) == 1 and values == ["1", *values[1:3], "-1", *values[1:3]]:
            seconds, level = float(values[1]), float(values[2].rstrip("%")) / 100
            waveform = remove_silence(waveform[0], sample_rate, seconds=seconds, level=level)[None]
        else:
            effect = " ".join([name, *values])
            raise ValueError(f"the sox effect {effect!r} needs the library libsox (Debian: apt install libsox-dev)")
    return waveform if channels_first else waveform.t(), sample_rate


def apply_effects_file(path: str | os.PathLike, effects: list[list[str]]) -> tuple[Tensor, int]:
    """Read a file and apply sox effects to it; see `apply_effects_tensor`."""
    return apply_effects_tensor(*_load(path), effects)


def remove_silence(waveform: Tensor, sample_rate: int, *, seconds: float, level: float) -> Tensor:
    """Cut out silence as sox's `silence 1 SECONDS LEVEL% -1 SECONDS LEVEL%` does.

    Sound begins with `seconds` without a break above the level and ends with as many below it; the level is that of the
    last 20 ms, which are counted from zero again after every end.

    Args:
        waveform: (T,).
        sample_rate: Its rate in Hz.
        seconds: Least duration of sound and of silence.
        level: Root mean square that divides them, 1 is full scale.

    Returns:
        The parts with sound, joined (T',).
    """
    window, duration = sample_rate // 50, round(seconds * sample_rate)
    energy = torch.cat([waveform.new_zeros(1, dtype=torch.float64), waveform.double().square().cumsum(0)])
    kept, start = [waveform[:0]], 0
    while start < len(waveform):
        last = torch.arange(start, len(waveform), device=waveform.device) + 1
        first = (last - window).clamp_min(start)
        loud = ((energy[last] - energy[first]) / window).clamp_min(0).sqrt() > level
        sound = _first_run(loud, duration)
        if sound is None:
            break
        silence = _first_run(~loud[sound + duration :], duration)
        end = len(waveform) if silence is None else start + sound + duration + silence
        kept.append(waveform[start + sound : end])
        start = end + duration
    return torch.cat(kept)


def _first_run(flags: Tensor, length: int) -> int | None:
    """Return where the first `length` true flags in a row begin."""
    if len(flags) < length:
        return None
    count = torch.cat([flags.new_zeros(1, dtype=torch.long), flags.long().cumsum(0)])
    runs = (count[length:] - count[:-length] == length).nonzero()
    return int(runs[0]) if len(runs) else None


class _Repository:
    def __init__(self, *arguments, **named):
        raise RuntimeError("--push_to_hf_hub needs huggingface_hub below 1.0: pip install 'huggingface_hub<1'")


def _load(uri, frame_offset: int = 0, num_frames: int = -1, channels_first: bool = True) -> tuple[Tensor, int]:
    import soundfile

    samples, rate = soundfile.read(uri, num_frames, frame_offset, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples)
    return waveform.t() if channels_first else waveform, rate


def _save(uri, src: Tensor, sample_rate: int) -> None:
    import soundfile

    soundfile.write(uri, src.t().numpy(), sample_rate)
