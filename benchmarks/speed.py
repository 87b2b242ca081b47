"""How fast and how large encode and decode are, beside what the machine could do and beside other WavLMs.

    python benchmarks/speed.py                         # everything; on two CPU cores the 600 s take half an hour
    python benchmarks/speed.py --models nano --seconds 1 10
    python benchmarks/speed.py --device cuda --dtypes bfloat16 --json speed.json

Weights are random. The operations of every matrix product are counted from the sizes, the machine's own rate of matrix
products is measured in the same run, and "of limit" says how much of the time is explained by these products at that
rate. Two rates are measured on a CPU: `torch.matmul`'s and the best of any product PyTorch offers; the limit is the
best. RTF is seconds of work per second of audio. Memory is the peak above the weights.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from wavcube_plugins import WavCube, WavCubeConfig
from wavcube_plugins.models.lengths import pad_batch
from wavcube_plugins.models.products import linear

BATCH_SECONDS = (10.0, 9.1, 7.4, 6.0, 4.7, 3.3, 2.2, 1.1)


def layer_operations(frames: int, dim: int, ffn_dim: int, keys: float) -> float:
    """Operations of one transformer layer whose queries see `keys` keys on average."""
    return 2 * frames * (4 * dim * dim + 2 * dim * ffn_dim) + 4 * frames * keys * dim


def encode_operations(config: WavCubeConfig, samples: int) -> float:
    """Operations (two per multiply-add) of the matrix products of `encode`, one item."""
    wavlm, bottleneck = config.wavlm, config.bottleneck
    total, length, channels = 0.0, samples, 1
    for dim, kernel, stride in zip(wavlm.conv_dims, wavlm.conv_kernels, wavlm.conv_strides, strict=True):
        length = (length - kernel) // stride + 1
        total += 2 * length * channels * kernel * dim
        channels = dim
    hidden = wavlm.hidden_dim
    total += 2 * length * channels * hidden
    total += 2 * length * hidden * hidden // wavlm.pos_conv_groups * wavlm.pos_conv_kernel
    layers = wavlm.num_layers + bottleneck.num_layers
    total += layers * layer_operations(length, hidden, wavlm.ffn_dim, length)
    middle = (hidden + bottleneck.latent_dim) // 2
    return total + 2 * length * middle * (hidden + bottleneck.latent_dim)


def wavlm_operations(config: WavCubeConfig, samples: int) -> float:
    """The part of `encode_operations` that WavLM alone needs."""
    wavlm, bottleneck = config.wavlm, config.bottleneck
    frames = (samples - wavlm.receptive_field) // wavlm.hop_length + 1
    middle = (wavlm.hidden_dim + bottleneck.latent_dim) // 2
    adapter = bottleneck.num_layers * layer_operations(frames, wavlm.hidden_dim, wavlm.ffn_dim, frames)
    adapter += 2 * frames * middle * (wavlm.hidden_dim + bottleneck.latent_dim)
    return encode_operations(config, samples) - adapter


def decode_operations(config: WavCubeConfig, frames: int) -> float:
    """Operations of the matrix products of `decode`, one item; causal layers see half of all pairs."""
    decoder = config.decoder
    total = 2.0 * frames * config.bottleneck.latent_dim * decoder.dim
    total += decoder.num_layers * layer_operations(frames, decoder.dim, decoder.ffn_dim, (frames + 1) / 2)
    total += 2 * frames * decoder.dim * decoder.num_mels * 3
    window = min(2 * frames, decoder.window_left + decoder.window_right + 1)
    total += 2 * 2 * frames * decoder.num_mels * decoder.vocoder_dim
    total += decoder.vocoder_layers * layer_operations(2 * frames, decoder.vocoder_dim, decoder.vocoder_ffn_dim, window)
    return total + 2 * 2 * frames * decoder.vocoder_dim * (decoder.n_fft + 2)


class PeakMemory:
    """Peak memory in bytes above where it stood on entry: of the GPU, or of this process by sampling."""

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = 0

    def __enter__(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            if platform.system() == "Linux":  # what earlier work freed must not hide what this one takes
                ctypes.CDLL(None).malloc_trim(0)
            self._start, self._stop = self._resident(), threading.Event()
            self._thread = threading.Thread(target=self._sample)
            self._thread.start()
        return self

    def __exit__(self, *_):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self._start
        else:
            self._stop.set()
            self._thread.join()

    def _sample(self):
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._resident() - self._start)

    @staticmethod
    def _resident() -> int:
        try:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:  # not Linux
            return 0


def measure(function: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Return seconds and peak memory in bytes of a call; of long ones the first is the only one."""
    start = time.perf_counter()
    with PeakMemory(device) as memory:
        function()
    elapsed = time.perf_counter() - start
    return elapsed if elapsed > 20 else seconds_of(function, device), memory.bytes


def seconds_of(function: Callable[[], object], device: torch.device, budget: float = 3.0) -> float:
    """Return the least time of several calls, as many as fit the budget; shared machines are noisy upwards."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    if first > budget:
        return first
    return min(once() for _ in range(max(3, min(50, int(budget / max(first, 1e-4))))))


def matrix_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measure the machine's matrix products, in operations per second: `torch.matmul` and the best there is."""
    size = 8192 if device.type == "cuda" else 1024
    x, weight = torch.randn(size, size, device=device).to(dtype), torch.randn(4 * size, size, device=device).to(dtype)
    operations = 2 * size * size * 4 * size
    with torch.inference_mode():
        matmul = operations / seconds_of(lambda: torch.matmul(x, weight.t()), device)
        best = max(matmul, operations / seconds_of(lambda: linear(x, weight), device))
    return {"torch.matmul": matmul, "best": best}


def build(preset: str, device: torch.device, dtype: torch.dtype) -> WavCube:
    with torch.device("meta"):
        model = WavCube(WavCubeConfig.preset(preset))
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.normal_(std=0.02)
    return model.to(dtype)


def other_wavlms(device: torch.device, dtype: torch.dtype) -> dict[str, Callable]:
    """Build torchaudio's and transformers' WavLM-Large with random weights; each takes (B, T) and lengths."""
    import torchaudio

    reference = torchaudio.models.wavlm_large().eval().to(device, dtype)
    models = {"torchaudio": lambda waveforms, lengths: reference(waveforms.to(dtype))}
    try:
        from transformers import WavLMConfig, WavLMModel
    except ImportError:
        return models
    config = WavLMConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, layerdrop=0.0,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_buckets=320, max_bucket_distance=800,
    )  # fmt: skip
    theirs = WavLMModel(config).eval().to(device, dtype)

    def run(waveforms, lengths):
        mask = torch.arange(waveforms.shape[1], device=device) < lengths[:, None]
        return theirs(waveforms.to(dtype), attention_mask=mask.long()).last_hidden_state

    return models | {"transformers": run}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano", "wavcube"], choices=["nano", "wavcube", "tiny"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[1, 10, 60, 600])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--no-others", action="store_true", help="leave torchaudio's and transformers' WavLM out")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # names, memory and waiting below are those of the current one
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {options.threads} threads"
    print(f"{name}; torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}\n")

    rows = []
    heads = ("RTF", 9), ("GFLOP/s", 9), ("of limit", 9), ("of matmul", 10), ("MiB", 8)
    print(f"{'model':22}{'type':9}{'audio':>12}{'work':>8}" + "".join(f"{head:>{width}}" for head, width in heads))
    for dtype_name in options.dtypes:
        dtype = getattr(torch, dtype_name)
        rates = matrix_rates(device, dtype)
        print(f"limit in {dtype_name}: " + ", ".join(f"{key} {rate / 1e9:,.0f} GFLOP/s" for key, rate in rates.items()))

        def report(model, audio, work, seconds, audio_seconds, operations, memory, dtype_name=dtype_name, rates=rates):
            rate = operations / seconds
            row = {
                "model": model, "dtype": dtype_name, "audio": audio, "work": work, "rtf": seconds / audio_seconds,
                "gflops": rate / 1e9, "of_limit": rate / rates["best"], "of_matmul": rate / rates["torch.matmul"],
                "mib": memory / 2**20,
            }  # fmt: skip
            rows.append(row)
            tqdm.write(
                f"{model:22}{dtype_name:9}{audio:>12}{work:>8}{row['rtf']:9.4f}{row['gflops']:9,.0f}"
                f"{row['of_limit']:9.0%}{row['of_matmul']:10.0%}{row['mib']:8,.0f}"
            )

        for preset in options.models:
            model = build(preset, device, dtype)
            config = model.config
            others = {} if options.no_others or preset != "wavcube" else other_wavlms(device, dtype)
            cases = [(f"{seconds:g} s", [seconds]) for seconds in options.seconds] + [("batch of 8", BATCH_SECONDS)]
            for audio, lengths_seconds in tqdm(cases, desc=f"{preset} {dtype_name}", leave=False, file=sys.stderr):
                items = [
                    0.1 * torch.randn(int(seconds * model.sample_rate), device=device) for seconds in lengths_seconds
                ]
                waveforms, lengths = pad_batch(items)
                total, counts = sum(lengths_seconds), [len(item) for item in items]
                with torch.inference_mode():
                    operations = sum(encode_operations(config, count) for count in counts)
                    elapsed, memory = measure(lambda m=model, w=waveforms, n=lengths: m.encode(w, n), device)
                    report(preset, audio, "encode", elapsed, total, operations, memory)
                    # Any latent takes the same time; encoding it again could take minutes.
                    frames = model.wavlm.frame_lengths(lengths)
                    latent = torch.randn(len(items), int(frames.max()), model.latent_dim, device=device)
                    operations = sum(decode_operations(config, count) for count in frames.tolist())
                    elapsed, memory = measure(lambda m=model, z=latent, n=frames: m.decode(z, n), device)
                    report(preset, audio, "decode", elapsed, total, operations, memory)
                    if max(lengths_seconds) > 60:
                        continue  # the others store all pairs of frames for all heads several times over
                    operations = sum(wavlm_operations(config, count) for count in counts)
                    rivals = {"ours, WavLM alone": lambda w, n, m=model: m.wavlm(w.to(m.dtype), n), **others}
                    for rival, run in rivals.items() if others else ():
                        if rival == "torchaudio" and len(items) > 1:
                            continue  # it cannot take lengths
                        elapsed, memory = measure(lambda r=run, w=waveforms, n=lengths: r(w, n), device)
                        report(rival, audio, "encode", elapsed, total, operations, memory)
            del model, others
    if options.json:
        options.json.write_text(
            json.dumps({"machine": name, "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
