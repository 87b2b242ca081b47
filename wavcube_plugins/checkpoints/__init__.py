"""Loading and saving models: our own folders, the public Lightning files, and the Hugging Face hub.

A native folder holds `model.safetensors` (weights for inference) and `config.json` (sizes and what is known about the
weights). Third-party files are read with `weights_only=True`, so no code in a pickle ever runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from wavcube_plugins.config import BACKBONES, PRESETS, WavCubeConfig, WavLMConfig
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.models.wavlm import WavLM

FORMAT = "wavcube-1"
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
ASSETS = Path(__file__).parents[1] / "assets"

# Hub name and folder of the published models.
PUBLISHED = {"wavcube": ("yhaha/WavCube", "WavCube"), "wavcube_pro": ("yhaha/WavCube", "WavCube-Pro")}
# What `load_model` knows by name.
NAMES = ("nano", "tiny", *PUBLISHED)
LIGHTNING_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


class CheckpointError(InputError):
    """A model cannot be loaded or saved; the message names what was expected and what was found."""


def load_model(
    source: str | os.PathLike,
    *,
    config: WavCubeConfig | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> WavCube:
    """Load a model. Its weights can be trained; use it under `torch.inference_mode()` where they are not.

    Args:
        source: `nano` (comes with the package) or `tiny` (random, for tests); `wavcube` or `wavcube_pro` (published on
            the Hugging Face hub); a hub name `owner/name` or `owner/name/folder`; a native folder, a `.safetensors`
            file with its `config.json` beside it, or a public Lightning `.ckpt` of stage 1 or 2. A folder that has one
            of the four names needs a path, as text `./nano`, or as a `Path`.
        config: Sizes or a preset's name, for a Lightning file whose sizes no preset has (heads and windows are not
            written in its tensors).
        device: Where to put the model; None leaves it on the CPU.
        dtype: Type of the weights; None means float32.
        local_files_only: Take hub models from the local cache alone. `HF_HUB_OFFLINE` does the same.
        revision: Branch, tag or commit of a hub model.
        cache_dir: Folder that hub models are downloaded to; None is the hub's own cache.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: nothing loadable by that name; the message says what was expected and what was found.
    """
    name, path = os.fspath(source), Path(source).expanduser()
    # As text a known name is that, whatever lies in the current folder.
    local = path.exists() and not (isinstance(source, str) and name in NAMES)
    if name in ("nano", "tiny") and not local:
        folder = ASSETS / name
        model = _load_folder(folder) if folder.is_dir() else _untrained(name)
    else:
        if not local:
            path = _from_hub(name, local_files_only=local_files_only, revision=revision, cache_dir=cache_dir)
        model = _load_path(path, WavCubeConfig.preset(config) if isinstance(config, str) else config)
    return model.to(device=device, dtype=dtype or torch.float32).eval()


def save_model(model: WavCube, folder: str | os.PathLike, *, dtype: torch.dtype | None = None) -> None:
    """Write a native folder.

    Args:
        model: The model; its `metadata` is kept.
        folder: Made if missing; a model in it is replaced, each file atomically.
        dtype: Type of the weights on disk; None keeps the model's.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    description = _description(model.config, trained=model.trained, metadata=model.metadata)
    write_folder(model.state_dict(), description, folder, dtype=dtype)


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: WavCubeConfig | str | None = None,
    dtype: torch.dtype | None = None,
) -> WavCubeConfig:
    """Turn a public Lightning file into a native folder, keeping only what inference needs.

    The file is mapped into memory, not read, so the memory needed is near the size of what is kept.

    Args:
        source: The `.ckpt` file.
        destination: The folder to write.
        config: As in `load_model`.
        dtype: Type of the weights on disk; None keeps the file's.

    Returns:
        The sizes of the converted model.

    Raises:
        CheckpointError: not such a file, or the destination cannot be written.
    """
    source = Path(source)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file; expected a public WavCube checkpoint (.ckpt)")
    config = WavCubeConfig.preset(config) if isinstance(config, str) else config
    state, config, metadata = _read_lightning(source, config)
    fitting(config, state, source)
    write_folder(state, _description(config, trained=True, metadata=metadata), destination, dtype=dtype)
    return config


def _description(config: WavCubeConfig, *, trained: bool, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"format": FORMAT, "config": config.to_dict(), "trained": trained, "metadata": dict(metadata)}


def write_folder(
    state: Mapping[str, Tensor],
    description: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors and their description into a folder, each of the two files atomically.

    Args:
        state: The tensors.
        description: What goes into `config.json`: `format`, `config` and whatever else is known.
        folder: Made if missing.
        dtype: Type of the tensors on disk; None keeps theirs.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder)
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    try:
        with atomic_path(folder / WEIGHTS_NAME) as temporary:
            safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        with atomic_path(folder / CONFIG_NAME) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written, {error}") from error


def _untrained(preset: str) -> WavCube:
    """Build a preset with random weights, the same ones every time."""
    warnings.warn(
        f"the weights of {preset!r} are UNTRAINED random numbers: shapes are right, sounds and features mean nothing",
        stacklevel=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WavCube(WavCubeConfig.preset(preset))
    model.metadata = {"source": f"random weights of preset {preset}"}
    return model


def _load_path(path: Path, config: WavCubeConfig | None) -> WavCube:
    if path.is_dir():
        if (path / CONFIG_NAME).is_file() and (path / WEIGHTS_NAME).is_file():
            return _load_folder(path)
        candidates = sorted(path.rglob("*.ckpt"))
        if len(candidates) != 1:
            found = ", ".join(item.name for item in candidates[:5]) or "neither"
            raise CheckpointError(
                f"{path}: expected {WEIGHTS_NAME} with {CONFIG_NAME}, or exactly one .ckpt file, found {found}"
            )
        path = candidates[0]
    if path.suffix == ".safetensors":
        return _load_folder(path.parent, path.name)
    if path.suffix not in LIGHTNING_SUFFIXES:
        raise CheckpointError(
            f"{path}: expected a folder, a .safetensors file or a Lightning file ({', '.join(LIGHTNING_SUFFIXES)}), "
            f"found {path.suffix or 'no suffix'}"
        )
    state, config, metadata = _read_lightning(path, config)
    # Copied out of the mapped file: it may be replaced or removed while the model lives.
    return _build(config, {name: tensor.clone() for name, tensor in state.items()}, path, True, metadata)


def _load_folder(folder: Path, weights_name: str = WEIGHTS_NAME) -> WavCube:
    config, description = read_description(folder, weights_name, WavCubeConfig, FORMAT)
    state = read_safetensors(folder / weights_name)
    metadata = {str(key): str(value) for key, value in description.get("metadata", {}).items()}
    return _build(config, state, folder / weights_name, bool(description.get("trained")), metadata)


def read_description(folder: Path, weights_name: str, kind: type, name: str) -> tuple[Any, dict[str, Any]]:
    """Read the `config.json` beside a file of weights.

    Args:
        folder: Where both lie.
        weights_name: Name of the file of weights, for the message.
        kind: `WavCubeConfig` or `WavLMConfig`.
        name: The format that is expected; a file that names none is taken for it.

    Returns:
        The sizes, and the whole description.

    Raises:
        CheckpointError: it is missing, or not of that kind.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder / weights_name}: expected {CONFIG_NAME} beside it, found none")
    what = "WavCube" if kind is WavCubeConfig else "WavLM"
    try:
        description = json.loads(path.read_text())
        if not isinstance(description, dict) or "config" not in description:
            raise ValueError("it has no entry 'config'")
        if description.get("format", name) != name:
            raise ValueError(f"its format is {description['format']!r} and not {name!r}")
        return kind.from_dict(description["config"]), description
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a {what} configuration, but {error}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: it is none, or not whole.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error


def _build(config: WavCubeConfig, state: dict[str, Tensor], path: Path, trained: bool, metadata: dict) -> WavCube:
    model = fitting(config, state, path)
    model.load_state_dict(state, assign=True)
    model.trained, model.metadata = trained, {**metadata, "source": str(path)}
    return model


def fitting(config: WavCubeConfig | WavLMConfig, state: Mapping[str, Tensor], path: Path) -> WavCube | WavLM:
    """Return a model without memory for its weights, after checking that the tensors are those it needs.

    Args:
        config: Sizes of a WavCube, or of a WavLM alone.
        state: The tensors.
        path: Where they come from, for the message.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    kind = WavCube if isinstance(config, WavCubeConfig) else WavLM
    with torch.device("meta"):
        model = kind(config)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        problem, names = ("lacks", missing) if missing else ("has the unknown", unknown)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{path}: expected the tensors of a {kind.__name__} model, but it {problem} {names[0]}{more}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} was expected with shape {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            )
    return model


# The public Lightning files -------------------------------------------------------------------------------------------

_PARTS = {  # prefix in the file: prefix in our model
    "feature_extractor.enc_transformer.": "compressor.layers.",
    "feature_extractor.enc_projection.": "compressor.projection.",
    "feature_extractor.dec_transformer.": "restorer.layers.",
    "feature_extractor.dec_projection.": "restorer.projection.",
    "feature_extractor.post_wavlm_layer_norm.": "post_wavlm_layer_norm.",
    "backbone.upsample_proj.": "decoder.upsample_proj.",
    "backbone.decoder.dconv2.": "decoder.upsampler.",
    "backbone.decoder.vocoder.head.out.": "decoder.vocoder.head.",
    "backbone.decoder.": "decoder.",
}
_TEACHER, _STUDENT = "feature_extractor.model.", "feature_extractor.rep_model."
_DISCRIMINATORS = ("multiperioddisc.", "multiresddisc.")
# In the decoder, yet not needed: a layer never used at 50 Hz, and a Hann window.
_UNUSED = ("backbone.decoder.dconv1.", "backbone.decoder.vocoder.head.istft.window")
_ATTENTION = re.compile(r"(.*\blayers\.\d+\.attention\.)(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)")


def _read_lightning(path: Path, config: WavCubeConfig | None) -> tuple[dict[str, Tensor], WavCubeConfig, dict]:
    """Read a public checkpoint; its tensors stay mapped to the file where they need no change."""
    content, state, stage = _lightning_state(path)
    config = _config_beside(path) if config is None else config
    with _missing_tensors_named(path):
        state = _native_names(state, _STUDENT if stage == 2 else _TEACHER)
        config = _match_config(state, config)
    if config.wavlm_layer == -1:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("post_wavlm_layer_norm.")}
    metadata = {"stage": str(stage)}
    for counter in ("epoch", "global_step"):
        if isinstance(content.get(counter), int):
            metadata[counter] = str(content[counter])
    return state, config, metadata


def _lightning_state(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor], int]:
    """Return the content of a public checkpoint, its tensors, and the stage of training it comes from."""
    content = read_torch(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = list(content)[:4] if isinstance(content, Mapping) else []
        found = f"the entries {', '.join(map(str, entries))}" if entries else f"a {type(content).__name__}"
        raise CheckpointError(f"{path}: expected a Lightning checkpoint with a 'state_dict' of tensors, found {found}")
    if not any(name.startswith(_TEACHER) for name in state):
        found = next(iter(state), "nothing")
        raise CheckpointError(f"{path}: expected a WavCube state_dict ({_TEACHER}…), found {found}")
    return content, state, 2 if any(name.startswith(_STUDENT) for name in state) else 1


def _config_beside(path: Path) -> WavCubeConfig | None:
    """Return the sizes in the `config.json` beside a public checkpoint, None if there is none."""
    path = path.parent / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text())
        sizes = description.get("config", description) if isinstance(description, dict) else description
        return WavCubeConfig.from_dict(sizes)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a WavCube configuration, {error}") from error


@contextmanager
def _missing_tensors_named(path: Path, what: str = "WavCube") -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path}: expected the tensors of a {what} model, but it lacks {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_torch(path: Path) -> Any:
    """Read a PyTorch file, mapped into memory where its format allows it; no code in it runs.

    Raises:
        CheckpointError: it is none, not whole, or holds more than tensors and plain values.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"the Python object {unsafe[1]}, which is not loaded" if unsafe else "something else, or a damaged file"
        raise CheckpointError(f"{path}: expected a checkpoint of plain tensors and numbers, found {found}") from error
    except Exception as error:  # a foreign file makes the unpickler fail in ways that nothing lists
        raise CheckpointError(
            f"{path}: expected a PyTorch checkpoint, found a truncated or foreign file of {path.stat().st_size:,} bytes"
        ) from error


def _native_names(state: Mapping[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """Rename the tensors inference needs and join each attention's q, k and v as torchaudio does."""
    renamed = {}
    for name, tensor in state.items():
        native = _native_name(name, encoder)
        if native is not None:
            renamed[native] = tensor
    return _join_attention(renamed)


def _native_name(name: str, encoder: str) -> str | None:
    if name.startswith(encoder):
        name = _wavlm_name(name[len(encoder) :])
        return None if name is None else "wavlm." + name
    if name.startswith(_UNUSED):
        return None
    for prefix, native in _PARTS.items():
        if name.startswith(prefix):
            return native + name[len(prefix) :]
    return None  # the teacher of stage 2, discriminators, losses and metrics


def _join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join q, k and v of every attention that has relative positions, as torchaudio does; raise KeyError if one lacks.

    Plain attention has them apart in torchaudio as well.
    """
    joined: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        attention = _ATTENTION.fullmatch(name)
        if attention is None or f"{attention[1]}gru_rel_pos_const" not in state:
            joined[name] = tensor
        elif attention[2] == "out_proj":
            joined[f"{attention[1]}attention.out_proj.{attention[3]}"] = tensor
        else:
            packed.setdefault(f"{attention[1]}attention.in_proj_{attention[3]}", {})[attention[2]] = tensor
    for name, parts in packed.items():
        if len(parts) < 3:
            raise KeyError(f"a part of {name}")
        joined[name] = torch.cat([parts["q_proj"], parts["k_proj"], parts["v_proj"]])
    return joined


def _match_config(state: dict[str, Tensor], config: WavCubeConfig | None) -> WavCubeConfig:
    """Find the sizes: those of the tensors, and the rest from the configuration that agrees with them."""
    candidates = [config] if config is not None else list(PRESETS.values())
    differences = []
    for candidate in candidates:
        sizes = _read_sizes(state, candidate)
        if sizes == candidate:
            return candidate
        differences.append(_first_difference(sizes, candidate))
    if config is not None:
        raise ValueError(f"the given configuration does not fit: {differences[0]}")
    raise ValueError(
        "its sizes are those of no preset, and heads and windows cannot be read from tensors; pass config= with all "
        f"sizes, or put a {CONFIG_NAME} beside it (against preset 'wavcube': {differences[0]})"
    )


def _read_sizes(state: dict[str, Tensor], rest: WavCubeConfig) -> WavCubeConfig:
    """Return `rest` with every size that shapes tell replaced by what they tell.

    Raises:
        KeyError: a tensor is missing.
    """

    wavlm = _read_wavlm_sizes(state, rest.wavlm, "wavlm.")
    bottleneck = dataclasses.replace(
        rest.bottleneck,
        latent_dim=state["compressor.projection.3.weight"].shape[0],
        num_layers=_count(state, r"compressor\.layers\.(\d+)\."),
    )
    try:
        decoder = dataclasses.replace(
            rest.decoder,
            dim=state["decoder.upsample_proj.weight"].shape[0],
            num_layers=_count(state, r"decoder\.layers\.(\d+)\."),
            ffn_dim=state["decoder.layers.0.fc1.weight"].shape[0],
            num_mels=state["decoder.upsampler.conv.weight"].shape[1],
            vocoder_dim=state["decoder.vocoder.embeddings.weight"].shape[0],
            vocoder_layers=_count(state, r"decoder\.vocoder\.layers\.(\d+)\."),
            vocoder_ffn_dim=state["decoder.vocoder.layers.0.fc1.weight"].shape[0],
            n_fft=state["decoder.vocoder.head.weight"].shape[0] - 2,
        )
    except ValueError:
        decoder = dataclasses.replace(rest.decoder, dim=rest.decoder.num_heads)  # differs from every real one
    return dataclasses.replace(rest, wavlm=wavlm, bottleneck=bottleneck, decoder=decoder)


def _first_difference(found: WavCubeConfig, expected: WavCubeConfig) -> str:
    for part in ("wavlm", "bottleneck", "decoder"):
        difference = _difference(getattr(found, part), getattr(expected, part), f"{part}.")
        if difference:
            return difference
    raise AssertionError("the configurations are equal")


def _difference(found: Any, expected: Any, where: str = "") -> str:
    """Return the first size in which two parts differ, empty if they are equal."""
    ours, theirs = dataclasses.asdict(expected), dataclasses.asdict(found)
    for name, value in ours.items():
        if theirs[name] != value:
            return f"expected {where}{name} {value}, found {theirs[name]}"
    return ""


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def load_discriminators(path: str | os.PathLike) -> dict[str, Tensor]:
    """Load the discriminators of a public Lightning checkpoint.

    Args:
        path: The `.ckpt` file, of stage 1 or 2.

    Returns:
        State dict for `pretraining.discriminators.Discriminators`, in float32.

    Raises:
        CheckpointError: not such a file, or it has no discriminators.
    """
    path = Path(path)
    _, state, _ = _lightning_state(path)
    spellings = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
    found = {}
    for name, tensor in state.items():
        if name.startswith(_DISCRIMINATORS) and ".spec_fn." not in name:  # windows are not learnt
            for old, new in spellings.items():
                name = re.sub(re.escape(old) + "$", new, name)
            found[name] = tensor.to(torch.float32, copy=True)
    lacking = [prefix for prefix in _DISCRIMINATORS if not any(name.startswith(prefix) for name in found)]
    if lacking:
        raise CheckpointError(f"{path}: expected a checkpoint with discriminators, but it has no {lacking[0]}…")
    return found


# WavLM and its relatives alone ----------------------------------------------------------------------------------------

# From the names of Hugging Face (which the public WavCube files have too) and fairseq (the authors' own files) to
# torchaudio's; the three agree in the rest.
_WAVLM_NAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"feature_projection\.", "encoder.feature_projection."),
        (r"layer_norm\.", "encoder.feature_projection.layer_norm."),
        (r"post_extract_proj\.", "encoder.feature_projection.projection."),
        (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"encoder\.(?!feature_projection\.|transformer\.)", "encoder.transformer."),
        (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"(feature_extractor\.conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
        (r"(.*\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
        (r"(.*\.layers\.\d+)\.self_attn\.", r"\1.attention."),
        (r"(.*\.attention)\.grep_linear\.", r"\1.gru_rel_pos_linear."),
        (r"(.*\.attention)\.grep_a$", r"\1.gru_rel_pos_const"),
        (r"(.*\.attention)\.relative_attention_bias\.", r"\1.rel_attn_embed."),
        (r"(.*\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
        (r"(.*\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
        # Weight norm before torch 2.0.
        (r"(.*\.pos_conv_embed\.conv)\.weight_g$", r"\1.parametrizations.weight.original0"),
        (r"(.*\.pos_conv_embed\.conv)\.weight_v$", r"\1.parametrizations.weight.original1"),
    )
]


def _wavlm_name(name: str) -> str | None:
    """Return torchaudio's name of a tensor of WavLM, HuBERT or wav2vec 2.0; None if it serves pretraining or a task."""
    if not name.startswith(
        ("feature_extractor.", "feature_projection.", "layer_norm.", "post_extract_proj.", "encoder.")
    ):
        return None
    for pattern, native in _WAVLM_NAMES:
        if pattern.match(name):
            name = pattern.sub(native, name, count=1)
    return name


def load_teacher(path: str | os.PathLike, *, config: WavLMConfig | None = None) -> WavLM:
    """Load the frozen teacher of a public checkpoint: WavLM as it was before stage 2.

    Args:
        path: A Lightning `.ckpt` of stage 1 or 2.
        config: Sizes, if they are those of no preset and no backbone.

    Returns:
        The teacher in eval mode, float32.

    Raises:
        CheckpointError: not such a file.
    """
    path = Path(path)
    _, state, _ = _lightning_state(path)
    beside = _config_beside(path) if config is None else None
    state = {name[len(_TEACHER) :]: tensor for name, tensor in state.items() if name.startswith(_TEACHER)}
    return build_wavlm(state, path, beside.wavlm if beside else config)


def build_wavlm(
    state: Mapping[str, Tensor], path: Path, config: WavLMConfig | None = None, *, rest: WavLMConfig | None = None
) -> WavLM:
    """Build an encoder from tensors named in the way of torchaudio, Hugging Face or fairseq.

    Args:
        state: The tensors; those of heads and quantisers are left out.
        path: Where they come from.
        config: Sizes; None finds them among the known backbones and presets.
        rest: Sizes to take where tensors tell none: heads of plain attention, strides, `max_distance`, and where the
            layers normalise. None takes them from the known model that fits.

    Returns:
        The encoder in eval mode, float32.

    Raises:
        CheckpointError: the tensors are not those of such an encoder, or of other sizes.
    """
    for prefix in ("wavlm.", "hubert.", "wav2vec2.", "w2v_model.", "model."):  # a whole model with a head for a task
        if any(name.startswith(f"{prefix}feature_extractor.") for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    renamed = {native: tensor for name, tensor in state.items() if (native := _wavlm_name(name))}
    if not renamed:
        found = next(iter(state), "no tensor")
        raise CheckpointError(f"{path}: expected the tensors of WavLM, HuBERT or wav2vec 2.0, found {found}")
    with _missing_tensors_named(path, "WavLM"):
        renamed = _join_attention(renamed)
        config = _match_wavlm(renamed, config) if rest is None else _read_wavlm_sizes(renamed, rest)
    wavlm = fitting(config, renamed, path)
    # Copied out of the mapped file: it may be replaced or removed while the encoder lives.
    wavlm.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in renamed.items()}, assign=True)
    wavlm.metadata = {"source": str(path)}
    return wavlm.eval()


def _match_wavlm(state: Mapping[str, Tensor], config: WavLMConfig | None) -> WavLMConfig:
    """Find the sizes: those of the tensors, and the rest from the configuration that agrees with them."""
    known = [*BACKBONES.values(), *(preset.wavlm for preset in PRESETS.values())]
    differences = []
    for candidate in known if config is None else [config]:
        try:
            difference = _difference(_read_wavlm_sizes(state, candidate), candidate)
        except ValueError as error:  # no such number of heads, or of layers in the conv stem
            difference = str(error)
        if not difference:
            return candidate
        differences.append(difference)
    if config is not None:
        raise ValueError(f"the given configuration does not fit: {differences[0]}")
    raise ValueError(
        "its sizes are those of no known backbone, and heads, strides and the place of the layer norms cannot be read "
        f"from tensors; give all sizes as a WavLMConfig (against WavLM-Large: {differences[0]})"
    )


def _read_wavlm_sizes(state: Mapping[str, Tensor], rest: WavLMConfig, prefix: str = "") -> WavLMConfig:
    """Return `rest` with every size that shapes tell replaced by what they tell.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the two cannot belong together.
    """
    stem, layers = f"{prefix}feature_extractor.conv_layers", f"{prefix}encoder.transformer.layers"
    convolutions = [state[f"{stem}.{i}.conv.weight"] for i in range(_count(state, rf"{re.escape(stem)}\.(\d+)\."))]
    position = state[f"{prefix}encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"]
    first = f"{layers}.0"
    if len(rest.conv_strides) != len(convolutions):
        raise ValueError(f"expected {len(rest.conv_strides)} layers in the conv stem, found {len(convolutions)}")
    sizes = {
        "conv_dims": tuple(weight.shape[0] for weight in convolutions),
        "conv_kernels": tuple(weight.shape[2] for weight in convolutions),
        "hidden_dim": position.shape[0],
        "num_layers": _count(state, rf"{re.escape(layers)}\.(\d+)\."),
        "ffn_dim": state[f"{first}.feed_forward.intermediate_dense.weight"].shape[0],
        "pos_conv_kernel": position.shape[2],
        "pos_conv_groups": position.shape[0] // position.shape[1],
        "extractor_mode": "layer_norm" if f"{stem}.1.layer_norm.weight" in state else "group_norm",
        "conv_bias": f"{stem}.0.conv.bias" in state,
        "relative_positions": f"{first}.attention.q_proj.weight" not in state,
    }
    if sizes["relative_positions"]:
        sizes["num_heads"] = state[f"{first}.attention.gru_rel_pos_const"].shape[1]
        sizes["num_buckets"] = state[f"{first}.attention.rel_attn_embed.weight"].shape[0]
    return dataclasses.replace(rest, **sizes)


# The Hugging Face hub -------------------------------------------------------------------------------------------------


def _from_hub(
    source: str, *, local_files_only: bool, revision: str | None, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Fetch what a hub name needs, from the local cache where it is there; return the folder or file."""
    if source in PUBLISHED:
        repository, folder = PUBLISHED[source]
    else:
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?", source)
        if (
            match is None
            or source.startswith((".", "/"))
            or Path(source).suffix in (*LIGHTNING_SUFFIXES, ".safetensors")
        ):
            known = ", ".join(NAMES)
            raise CheckpointError(
                f"{source}: no such file or folder; known names are {known}, or a hub name owner/name"
            )
        # The repository of the published models holds several; its bare name means the paper's main one.
        main_repository, main_folder = PUBLISHED["wavcube"]
        repository, folder = match[1], match[2] or (main_folder if match[1] == main_repository else None)

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    inside = f"{folder}/" if folder else ""
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[f"{inside}{name}" for name in (CONFIG_NAME, WEIGHTS_NAME, "*.ckpt")],
            local_files_only=local_files_only,
            cache_dir=cache_dir,
        )
    except (LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            reason = f"the hub answers {error.response.status_code}: no such repository or revision, or no access"
        else:
            reason = "it is not in the local cache and the hub cannot be reached or was not to be asked"
        raise CheckpointError(
            f"{source}: {reason}; give a local file or folder, or 'nano', which comes with the package"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{source}: not a hub name, {error}") from error
    path = Path(snapshot) / inside
    if not path.is_dir():
        raise CheckpointError(f"{source}: the repository {repository} has no folder {folder!r} with weights")
    return path
