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
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from wavcube_plugins.config import PRESETS, WavCubeConfig, WavLMConfig
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.wavcube import WavCube

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
ASSETS = Path(__file__).parent / "assets"

# Hub name and folder of the published models.
PUBLISHED = {"wavcube": ("yhaha/WavCube", "WavCube"), "wavcube_pro": ("yhaha/WavCube", "WavCube-Pro")}
LIGHTNING_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


class CheckpointError(ValueError):
    """A model cannot be loaded or saved; the message names what was expected and what was found."""


def load_model(
    source: str | os.PathLike,
    *,
    config: WavCubeConfig | str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
) -> WavCube:
    """Load a model, ready for inference.

    Args:
        source: `nano` (comes with the package) or `tiny` (random, for tests); `wavcube` or `wavcube_pro` (published on
            the Hugging Face hub); a hub name `owner/name` or `owner/name/folder`; a native folder, a `.safetensors`
            file with its `config.json` beside it, or a public Lightning `.ckpt` of stage 1 or 2.
        config: Sizes or a preset's name, for a Lightning file whose sizes no preset has (heads and windows are not
            written in its tensors).
        device: Where to put the model; None leaves it on the CPU.
        dtype: Type of the weights; None means float32.
        local_files_only: Take hub models from the local cache alone. `HF_HUB_OFFLINE` does the same.
        revision: Branch, tag or commit of a hub model.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: nothing loadable by that name; the message says what was expected and what was found.
    """
    source = os.fspath(source)
    if source in ("nano", "tiny") and not Path(source).exists():
        folder = ASSETS / source
        model = _load_folder(folder) if folder.is_dir() else _untrained(source)
    else:
        path = Path(source).expanduser()
        if not path.exists():
            path = _from_hub(source, local_files_only=local_files_only, revision=revision)
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
    _write_folder(model.state_dict(), model.config, folder, trained=model.trained, metadata=model.metadata, dtype=dtype)


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
    _fitting(config, state, source)
    _write_folder(state, config, destination, trained=True, metadata=metadata, dtype=dtype)
    return config


def _write_folder(state, config, folder, *, trained, metadata, dtype) -> None:
    folder = Path(folder)
    state = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    description = {"format": "wavcube-1", "config": config.to_dict(), "trained": trained, "metadata": metadata}
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
    config_path, weights_path = folder / CONFIG_NAME, folder / weights_name
    if not config_path.is_file():
        raise CheckpointError(f"{weights_path}: expected {CONFIG_NAME} beside it, found none")
    try:
        description = json.loads(config_path.read_text())
        if not isinstance(description, dict) or "config" not in description:
            raise ValueError("it has no entry 'config'")
        config = WavCubeConfig.from_dict(description["config"])
    except ValueError as error:
        raise CheckpointError(f"{config_path}: expected a WavCube configuration, but {error}") from error
    try:
        state = safetensors.torch.load_file(weights_path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights_path}: truncated or not a safetensors file ({error})") from error
    metadata = {str(key): str(value) for key, value in description.get("metadata", {}).items()}
    return _build(config, state, weights_path, bool(description.get("trained")), metadata)


def _build(config: WavCubeConfig, state: dict[str, Tensor], path: Path, trained: bool, metadata: dict) -> WavCube:
    model = _fitting(config, state, path)
    model.load_state_dict(state, assign=True)
    model.trained, model.metadata = trained, {**metadata, "source": str(path)}
    return model


def _fitting(config: WavCubeConfig, state: Mapping[str, Tensor], path: Path) -> WavCube:
    """Return a model without memory for its weights, after checking that the tensors are those it needs."""
    with torch.device("meta"):
        model = WavCube(config)
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        kind, names = ("lacks", missing) if missing else ("has the unknown", unknown)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{path}: expected the tensors of a WavCube model, but it {kind} {names[0]}{more}")
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
# In the two parts we load, yet not needed: a layer never used at 50 Hz, a Hann window, a training-time mask.
_UNUSED = ("backbone.decoder.dconv1.", "backbone.decoder.vocoder.head.istft.window", "wavlm.masked_spec_embed")
_ATTENTION = re.compile(r"(.*\blayers\.\d+\.attention\.)(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)")


def _read_lightning(path: Path, config: WavCubeConfig | None) -> tuple[dict[str, Tensor], WavCubeConfig, dict]:
    """Read a public checkpoint; its tensors stay mapped to the file where they need no change."""
    content = _torch_load(path)
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        entries = list(content)[:4] if isinstance(content, Mapping) else []
        found = f"the entries {', '.join(map(str, entries))}" if entries else f"a {type(content).__name__}"
        raise CheckpointError(f"{path}: expected a Lightning checkpoint with a 'state_dict' of tensors, found {found}")
    if not any(name.startswith(_TEACHER) for name in state):
        found = next(iter(state), "nothing")
        raise CheckpointError(f"{path}: expected a WavCube state_dict ({_TEACHER}…), found {found}")
    stage = 2 if any(name.startswith(_STUDENT) for name in state) else 1
    if config is None and (path.parent / CONFIG_NAME).is_file():
        try:
            description = json.loads((path.parent / CONFIG_NAME).read_text())
            config = WavCubeConfig.from_dict(description.get("config", description))
        except ValueError as error:
            raise CheckpointError(f"{path.parent / CONFIG_NAME}: not a WavCube configuration, {error}") from error
    try:
        state = _native_names(state, _STUDENT if stage == 2 else _TEACHER)
        config = _match_config(state, config)
    except (KeyError, ValueError) as error:
        reason = (
            f"expected the tensors of a WavCube model, but it lacks {error}"
            if isinstance(error, KeyError)
            else str(error)
        )
        raise CheckpointError(f"{path}: {reason}") from error
    if config.wavlm_layer == -1:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("post_wavlm_layer_norm.")}
    metadata = {"stage": str(stage)}
    for counter in ("epoch", "global_step"):
        if isinstance(content.get(counter), int):
            metadata[counter] = str(content[counter])
    return state, config, metadata


def _torch_load(path: Path):
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
    renamed: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        native = _native_name(name, encoder)
        if native is None:
            continue
        attention = _ATTENTION.fullmatch(native)
        if attention is None:
            renamed[native] = tensor
        elif attention[2] == "out_proj":
            renamed[f"{attention[1]}attention.out_proj.{attention[3]}"] = tensor
        else:
            packed.setdefault(f"{attention[1]}attention.in_proj_{attention[3]}", {})[attention[2]] = tensor
    for name, parts in packed.items():
        if len(parts) < 3:
            raise KeyError(f"a part of {name}")
        renamed[name] = torch.cat([parts["q_proj"], parts["k_proj"], parts["v_proj"]])
    return renamed


def _native_name(name: str, encoder: str) -> str | None:
    if name.startswith(encoder):
        name = "wavlm." + name[len(encoder) :]
        name = name.replace("wavlm.feature_projection.", "wavlm.encoder.feature_projection.")
        name = re.sub(r"^wavlm\.encoder\.(?!feature_projection\.)", "wavlm.encoder.transformer.", name)
        for index, spelling in enumerate(("weight_g", "weight_v")):  # weight norm before torch 2.0
            name = name.replace(f".conv.{spelling}", f".conv.parametrizations.weight.original{index}")
    if name.startswith(_UNUSED):
        return None
    if name.startswith("wavlm."):
        return name
    for prefix, native in _PARTS.items():
        if name.startswith(prefix):
            return native + name[len(prefix) :]
    return None  # the teacher of stage 2, discriminators, losses and metrics


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

    def count(pattern: str) -> int:
        found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    stem, layers = "wavlm.feature_extractor.conv_layers", "wavlm.encoder.transformer.layers"
    convolutions = [state[f"{stem}.{i}.conv.weight"] for i in range(count(rf"{stem}\.(\d+)\."))]
    position = state["wavlm.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"]
    first = f"{layers}.0"
    wavlm = dataclasses.asdict(rest.wavlm) | {
        "conv_dims": tuple(weight.shape[0] for weight in convolutions),
        "conv_kernels": tuple(weight.shape[2] for weight in convolutions),
        "hidden_dim": position.shape[0],
        "num_layers": count(rf"{layers}\.(\d+)\."),
        "num_heads": state[f"{first}.attention.gru_rel_pos_const"].shape[1],
        "ffn_dim": state[f"{first}.feed_forward.intermediate_dense.weight"].shape[0],
        "pos_conv_kernel": position.shape[2],
        "pos_conv_groups": position.shape[0] // position.shape[1],
        "num_buckets": state[f"{first}.attention.rel_attn_embed.weight"].shape[0],
    }
    if len(wavlm["conv_strides"]) != len(convolutions):
        raise ValueError(f"expected {len(wavlm['conv_strides'])} layers in the conv stem, found {len(convolutions)}")
    bottleneck = dataclasses.replace(
        rest.bottleneck,
        latent_dim=state["compressor.projection.2.weight"].shape[0],
        num_layers=count(r"compressor\.layers\.(\d+)\."),
    )
    try:
        decoder = dataclasses.replace(
            rest.decoder,
            dim=state["decoder.upsample_proj.weight"].shape[0],
            num_layers=count(r"decoder\.layers\.(\d+)\."),
            ffn_dim=state["decoder.layers.0.fc1.weight"].shape[0],
            num_mels=state["decoder.upsampler.conv.weight"].shape[1],
            vocoder_dim=state["decoder.vocoder.embeddings.weight"].shape[0],
            vocoder_layers=count(r"decoder\.vocoder\.layers\.(\d+)\."),
            vocoder_ffn_dim=state["decoder.vocoder.layers.0.fc1.weight"].shape[0],
            n_fft=state["decoder.vocoder.head.weight"].shape[0] - 2,
        )
    except ValueError:
        decoder = dataclasses.replace(rest.decoder, dim=rest.decoder.num_heads)  # differs from every real one
    return dataclasses.replace(rest, wavlm=WavLMConfig(**wavlm), bottleneck=bottleneck, decoder=decoder)


def _first_difference(found: WavCubeConfig, expected: WavCubeConfig) -> str:
    for part in ("wavlm", "bottleneck", "decoder"):
        ours, theirs = dataclasses.asdict(getattr(expected, part)), dataclasses.asdict(getattr(found, part))
        for name, value in ours.items():
            if theirs[name] != value:
                return f"expected {part}.{name} {value}, found {theirs[name]}"
    raise AssertionError("the configurations are equal")


# The Hugging Face hub -------------------------------------------------------------------------------------------------


def _from_hub(source: str, *, local_files_only: bool, revision: str | None) -> Path:
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
            known = ", ".join(["nano", "tiny", *PUBLISHED])
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
