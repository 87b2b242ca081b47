"""What a training run starts from and leaves behind, whichever toolkit drives it.

A run's folder holds::

    run.json          stage, sizes, what it was started from and trained on
    teacher/          the frozen teacher, once; checkpoints do not repeat it
    save/CKPT+…/      checkpoints in SpeechBrain's layout: model.ckpt, discriminators.ckpt, training.ckpt (optimisers),
                      and average.ckpt, the moving average of the weights, if there is one
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from wavcube_plugins.checkpoints import (
    LIGHTNING_SUFFIXES,
    CheckpointError,
    load_discriminators,
    load_model,
    load_teacher,
    save_model,
)
from wavcube_plugins.checkpoints.backbones import (
    init_from_backbone,
    load_backbone,
    save_backbone,
)
from wavcube_plugins.config import PRESETS, WavCubeConfig
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.models.wavlm import WavLM
from wavcube_plugins.pretraining.discriminators import Discriminators

RUN_NAME, TEACHER_NAME, SAVE_NAME = "run.json", "teacher", "save"
FORMAT = "wavcube-run-1"

# What a checkpoint of a run must hold; one that a kill cut short, while it was written or removed, does not count.
PARTS = ("CKPT.yaml", "model.ckpt", "discriminators.ckpt", "training.ckpt", "brain.ckpt")
AVERAGE_NAME = "average.ckpt"


@dataclass
class Start:
    """What a stage begins with.

    Attributes:
        model: Its WavLM is the frozen teacher in stage 1, the student in stage 2.
        teacher: The frozen WavLM, in both stages.
        discriminators: Fresh ones, or those of the run or file that is continued.
        origin: In words, where all this came from.
    """

    model: WavCube
    teacher: WavLM
    discriminators: Discriminators
    origin: str


def configure(
    preset: str,
    backbone: WavLM | None = None,
    *,
    bottleneck: str = "ae",
    latent_dim: int | None = None,
    frame_rate: int = 50,
    wavlm_layer: int = -1,
) -> WavCubeConfig:
    """Return a preset's sizes with a backbone's own, and with the paper's ablations.

    Args:
        preset: One of `config.PRESETS`.
        backbone: Its sizes replace those of the preset's WavLM.
        bottleneck: `ae`, `vae` or `sigma_vae`.
        latent_dim: Channels of the latent; None keeps the preset's.
        frame_rate: Latent frames per second, 50 or 25.
        wavlm_layer: Which hidden state is compressed, -1 for the last.

    Raises:
        ValueError: a value that is not one of these.
    """
    config = WavCubeConfig.preset(preset)
    if frame_rate not in (50, 25):
        raise ValueError(f"frame_rate must be 50 or 25, got {frame_rate}")
    parts = replace(
        config.bottleneck,
        kind=bottleneck,
        latent_dim=config.bottleneck.latent_dim if latent_dim is None else latent_dim,
        frame_stride=50 // frame_rate,
    )
    wavlm = config.wavlm if backbone is None else backbone.config
    return replace(config, wavlm=wavlm, bottleneck=parts, wavlm_layer=wavlm_layer)


def start_stage1(
    config: WavCubeConfig, backbone: WavLM, *, adapters: bool = True, discriminator_width: float = 1.0, seed: int = 0
) -> Start:
    """Begin stage 1 from a backbone.

    Args:
        config: Sizes, with the backbone's own.
        backbone: The frozen teacher.
        adapters: Compressor and Restorer begin as copies of its first layers; False: at random, an ablation.
        discriminator_width: Share of the published discriminators' channels.
        seed: Of the random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, discriminators = WavCube(config), Discriminators(discriminator_width)
    init_from_backbone(model, backbone, adapters=adapters)
    # The end of its path: the rest is this machine's own business.
    source = "/".join(Path(backbone.metadata.get("source", "given")).parts[-2:])
    return Start(model, model.wavlm, discriminators, f"backbone {source}")


def start_from(
    source: str | os.PathLike,
    stage: int,
    *,
    teacher: WavLM | None = None,
    discriminator_width: float = 1.0,
    seed: int = 0,
) -> Start:
    """Begin a stage from what an earlier training left.

    Args:
        source: A run's folder, a public Lightning checkpoint of stage 1 or 2, or a native folder.
        stage: 1 or 2. Stage 2 begins from stage 1, or goes on from stage 2; stage 1 goes on from stage 1.
        teacher: The frozen WavLM, where the source does not have it (a native folder of stage 2).
        discriminator_width: Share of the published discriminators' channels; those of the source are taken if it fits.
        seed: Of the discriminators' random weights, where the source has none.

    Raises:
        CheckpointError: nothing usable by that name, or the teacher is missing.
    """
    path, packaged = Path(source).expanduser(), source == "nano"
    # A default such as results/wavcube/stage1 looks like a name on the Hugging Face hub, which nobody asked for.
    if not path.exists() and not packaged:
        raise CheckpointError(f"{source}: no such run, checkpoint or model folder to start from")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminators = Discriminators(discriminator_width)
    if (path / RUN_NAME).is_file() and not packaged:
        description = read_run(path)
        model, checkpoint = load_run(path)
        if description["settings"].get("discriminator_width", 1.0) == discriminator_width:
            discriminators.load_state_dict(_load(checkpoint / "discriminators.ckpt"))
        source_stage, teacher = description["stage"], load_backbone(path / TEACHER_NAME)
        origin = f"stage {source_stage} run {path.name}, {_progress(checkpoint)}"
    else:
        model = load_model(source)
        source_stage = int(model.metadata.get("stage", "0"))
        origin = path.name
        if path.suffix in LIGHTNING_SUFFIXES:
            if discriminator_width == 1:
                _take_discriminators(discriminators, path)
            teacher = load_teacher(path, config=model.config.wavlm)
        elif source_stage == 1:
            teacher = copy.deepcopy(model.wavlm)
    if stage == 1 and source_stage == 2:
        raise CheckpointError(f"{source}: is of stage 2, which stage 1 cannot go on from; start stage 2 from it")
    if teacher is None:
        raise CheckpointError(f"{source}: does not hold the frozen teacher; name it, such as --backbone wavlm_large")
    model = model.float()
    return Start(model, model.wavlm if stage == 1 else teacher, discriminators, origin)


def write_run(folder: str | os.PathLike, start: Start, stage: int, settings: Mapping[str, object]) -> None:
    """Describe a run in its folder, and put the frozen teacher there, so that it needs nothing from outside."""
    folder = Path(folder)
    save_backbone(start.teacher, folder / TEACHER_NAME)
    description = {
        "format": FORMAT,
        "stage": stage,
        "config": start.model.config.to_dict(),
        "origin": start.origin,
        "settings": dict(settings),
    }
    _describe(folder, description)


def change_settings(
    folder: str | os.PathLike, settings: Mapping[str, object], step: int, of_no_consequence: Collection[str] = ()
) -> dict[str, tuple[object, object]]:
    """Note in a run's description what it goes on with, and from which step on; earlier settings stay on record.

    Args:
        folder: The run's folder.
        settings: What it goes on with.
        step: Where it goes on.
        of_no_consequence: Names of settings that may differ without being noted.

    Returns:
        By name, the values before and now of what differs.
    """
    description = read_run(folder)
    before = description["settings"]
    settings = json.loads(json.dumps(dict(settings), default=str))
    changes = {
        name: (before[name], value)
        for name, value in settings.items()
        if name in before and name not in of_no_consequence and before[name] != value
    }
    if changes:
        old = {name: value for name, (value, _) in changes.items()}
        description.setdefault("earlier", []).append({"until": step, "settings": old})
    if settings != before:
        _describe(Path(folder), {**description, "settings": settings})
    return changes


def _describe(folder: Path, description: dict) -> None:
    with atomic_path(folder / RUN_NAME) as temporary:
        temporary.write_text(json.dumps(description, indent=2, default=str) + "\n")


def read_run(folder: str | os.PathLike) -> dict:
    """Return what `write_run` wrote.

    Raises:
        CheckpointError: there is no run in that folder.
    """
    path = Path(folder) / RUN_NAME
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: is not the folder of a training run, it has no {RUN_NAME}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected the format {FORMAT}")
    return description


def open_run(folder: str | os.PathLike) -> Start:
    """Return what a run in this folder began with, to be resumed; its weights are those of no checkpoint yet."""
    folder = Path(folder)
    description = read_run(folder)
    teacher = load_backbone(folder / TEACHER_NAME)
    model = WavCube(WavCubeConfig.from_dict(description["config"]))
    model.wavlm.load_state_dict(teacher.state_dict())
    if description["stage"] == 1:
        teacher = model.wavlm
    width = description["settings"].get("discriminator_width", 1.0)
    return Start(model, teacher, Discriminators(width), description["origin"])


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """List the checkpoints of a run, the newest last."""
    found = []
    for path in (Path(folder) / SAVE_NAME).glob("CKPT+*"):
        if all((path / part).is_file() for part in PARTS):
            found.append((read_meta(path).get("unixtime", 0.0), path))
    return [path for _, path in sorted(found)]


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Remove what a killed process left of checkpoints that it was writing or removing."""
    whole = checkpoints(folder)
    for path in (Path(folder) / SAVE_NAME).glob("CKPT+*"):
        if path not in whole:
            shutil.rmtree(path)


def read_meta(checkpoint: Path) -> dict:
    """Return what a checkpoint notes about itself: `step`, validation scores, `unixtime`."""
    return yaml.safe_load((checkpoint / "CKPT.yaml").read_text()) or {}


def load_run(folder: str | os.PathLike, which: str = "last") -> tuple[WavCube, Path]:
    """Load the model of a run, with the average of its weights if there is one.

    Args:
        folder: The run's folder.
        which: `last`, or `best`: the checkpoint with the lowest mel distance in validation.

    Returns:
        The model in eval mode, and the checkpoint's folder.

    Raises:
        CheckpointError: no run, or no checkpoint yet.
    """
    folder = Path(folder)
    description = read_run(folder)
    found = checkpoints(folder)
    if which == "best":
        scores = {path: read_meta(path).get("mel", math.nan) for path in found}
        found = sorted((path for path in found if math.isfinite(scores[path])), key=lambda path: -scores[path])
    if not found:
        raise CheckpointError(f"{folder}: this run has no {'validated ' if which == 'best' else ''}checkpoint yet")
    checkpoint = found[-1]
    start = open_run(folder)
    load_weights(start.model, _load(checkpoint / "model.ckpt"), description["stage"])
    if (checkpoint / AVERAGE_NAME).is_file():
        start.model.load_state_dict(_load(checkpoint / AVERAGE_NAME), strict=False)
    meta = read_meta(checkpoint)
    start.model.trained = True
    start.model.metadata = {
        "stage": str(description["stage"]),
        "global_step": str(meta.get("step", "unknown")),
        "origin": description["origin"],
    }
    return start.model.eval(), checkpoint


def trained_weights(model: WavCube, stage: int) -> dict[str, Tensor]:
    """Return the weights that a stage changes: stage 1 leaves WavLM as it was."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if stage == 2 or not name.startswith("wavlm.")}


def load_weights(model: WavCube, state: Mapping[str, Tensor], stage: int) -> None:
    """Put what `trained_weights` gave into a model.

    Raises:
        CheckpointError: these are not the weights of such a model.
    """
    expected = trained_weights(model, stage).keys()
    if state.keys() != expected:
        difference = sorted(state.keys() ^ expected)
        raise CheckpointError(f"this checkpoint is of another model: the two differ in {difference[0]}")
    model.load_state_dict(state, strict=False)


def export_run(
    folder: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    which: str = "last",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> WavCube:
    """Write the model of a run as a native folder, without discriminators and optimisers.

    Args:
        folder: The run's folder.
        destination: Where to.
        which: `last` or `best`, as in `load_run`.
        dtype: Type of the weights on disk.
        metadata: What else to note about the weights.

    Returns:
        The model that was written.
    """
    model, _ = load_run(folder, which)
    model.metadata.update(metadata or {})
    save_model(model, destination, dtype=dtype)
    return model


def presets() -> tuple[str, ...]:
    """Names of the sizes that can be trained."""
    return tuple(PRESETS)


def _take_discriminators(discriminators: Discriminators, path: Path) -> None:
    try:
        discriminators.load_state_dict(load_discriminators(path))
    except CheckpointError as error:
        warnings.warn(f"the discriminators start at random: {error}", stacklevel=3)
    except RuntimeError as error:
        problem = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: its discriminators are not those of WavCube, {problem}") from error


def _progress(checkpoint: Path) -> str:
    return f"step {read_meta(checkpoint).get('step', 'unknown')}"


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in ways that nothing lists
        raise CheckpointError(f"{path}: cut short or not a checkpoint") from error
