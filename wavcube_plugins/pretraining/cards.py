"""What is published of a training run: a folder with its model and a card that says what the model is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from wavcube_plugins.checkpoints import CheckpointError
from wavcube_plugins.errors import InputError
from wavcube_plugins.files import atomic_path
from wavcube_plugins.models.wavcube import WavCube
from wavcube_plugins.pretraining import runs
from wavcube_plugins.pretraining.losses import STAGE_WEIGHTS

CARD_NAME = "README.md"
TAGS = ("audio", "speech", "audio-codec", "speech-representation", "wavcube")
PAPER = "https://arxiv.org/abs/2605.06407"

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A WavCube: one compact continuous representation of speech, for understanding, reconstruction and generation
([paper]({{ paper }})).

{{ sizes }}

## Training

{{ training }}

## Scores

{{ scores }}

{% if notes %}{{ notes }}

{% endif %}## Use

```bash
pip install .                                        # in a clone of WavCube plugins
wavcube reconstruct speech.wav --model {{ name }}        # in the folder above this one
wavcube extract corpus/ latents/ --model {{ name }}
```

```python
import torch
from wavcube_plugins import load_model

model = load_model("{{ name }}")
with torch.inference_mode():
    latent, frames = model.encode(waveforms, lengths)  # (B, T), (B,) samples -> (B, L, {{ latent_dim }}), (B,) frames
    waveforms, lengths = model.decode(latent, frames)
```

In s3prl: `python run_downstream.py -m train -u wavcube -k {{ name }} -d example -n first_try`.

## Limits

{% for limit in limits %}* {{ limit }}
{% endfor %}
## Licence of the weights

{% if license %}They are released under: {{ license }}{% else %}Whoever published them has not stated one.{% endif %}
"""
_LIMITS = (
    "It is made for speech of one talker at 16 kHz, not for music, overlapping talkers or noise.",
    "A voice that it reconstructs is a likeness: do not use it to imitate anyone who has not agreed.",
    "The licences and terms of the encoder it started from and of its training data apply as well.",
)

Scores = Mapping[str, "float | str | Mapping[str, float | str]"]

_STAGES = {
    1: "stage 1, the semantic bottleneck: WavLM frozen, no acoustic gradient in the latent",
    2: "stage 2, reconstruction under semantic anchoring: encoder, latent and decoder trained together",
}
# Settings of a run that a reader wants to know, and what they are called.
_SETTINGS = {
    "batch_size": "crops per step and process",
    "processes": "processes",
    "crop_seconds": "seconds per crop",
    "total_steps": "steps of the schedule",
    "lr": "highest learning rate",
    "adversarial_from": "discriminators from step",
    "phase_weight": "weight of the phase loss",
}
# What the losses of a validation are called in a table.
_LOSSES = {
    "mel": "log-mel distance",
    "semantic": "semantic loss",
    "semantic_restored": "semantic loss, restored features",
    "semantic_student": "semantic loss, student's features",
}


def publish(
    run: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    which: str = "last",
    dtype: torch.dtype | None = None,
    license: str | None = None,
    data: str | None = None,
    scores: Scores | None = None,
    notes: str | None = None,
) -> WavCube:
    """Write the model of a run as a folder that can be loaded, shared and uploaded, with a model card.

    Args:
        run: The run's folder.
        destination: Where to; a model in it is replaced.
        which: `last` or `best`, as in `runs.load_run`.
        dtype: Type of the weights on disk.
        license: Under which the weights are given away, such as an identifier of the Hugging Face hub.
        data: What the model was trained on.
        scores: What was measured, by metric, or by test set and metric; None takes the run's own last validation.
        notes: Markdown that the card has behind the scores.

    Returns:
        The model that was written.

    Raises:
        CheckpointError: no such run or no checkpoint yet, or the folder cannot be written.
        ValueError: scores that are no numbers.
    """
    rows = None if scores is None else check_scores(scores)
    noted = {name: value for name, value in (("license", license), ("data", data)) if value}
    model = runs.export_run(run, destination, which=which, dtype=dtype, metadata=noted)
    step = model.metadata.get("global_step", "")
    caption = "Measured by whoever published this model."
    if rows is None:
        found, rows = last_validation(run, int(step) if step.isdecimal() else None)
        caption = (
            f"From the run's own validation at step {found:,}: the losses over its validation set, the other scores "
            "over the few utterances that it reports. They compare with other runs on the same data alone."
        )
    name = Path(destination).resolve().name
    card = write_card(model, name, runs.read_run(run), license, data, rows, caption, notes)
    try:
        with atomic_path(Path(destination) / CARD_NAME) as temporary:
            temporary.write_text(card, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written, {error}") from error
    return model


def check_scores(scores: object) -> list[dict[str, float | str]]:
    """Return scores as the rows of a table.

    Raises:
        ValueError: not a mapping of names to numbers or text, or to such mappings.
    """

    def plain(values: object) -> bool:
        return isinstance(values, Mapping) and all(
            isinstance(value, (int, float, str)) and not isinstance(value, bool) for value in values.values()
        )

    if isinstance(scores, Mapping) and scores and plain(scores):
        return [{"metric": name, "score": value} for name, value in scores.items()]
    if isinstance(scores, Mapping) and scores and all(map(plain, scores.values())):
        return [{"test set": name, **values} for name, values in scores.items()]
    raise InputError(
        'scores must be an object such as {"STOI": 0.97} or {"test-clean": {"STOI": 0.97}}, with numbers or text alone'
    )


def last_validation(run: str | os.PathLike, step: int | None) -> tuple[int, list[dict[str, float | str]]]:
    """Return the last validation of a run up to a step, and its scores as rows; none before the first one."""
    found: int = 0
    scores: dict[str, Any] = {}
    path = Path(run) / "progress.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:  # cut short by a kill
            continue
        values = {name[6:]: value for name, value in line.items() if name.startswith("valid ") and value is not None}
        if values and (step is None or line["step"] <= step):
            found, scores = line["step"], values
    return found, [{"metric": _LOSSES.get(name, name), "score": value} for name, value in scores.items()]


def write_card(
    model: WavCube,
    name: str,
    run: Mapping[str, Any],
    license: str | None,
    data: str | None,
    rows: list[dict[str, float | str]],
    caption: str,
    notes: str | None = None,
) -> str:
    """Return the text of a model card in the form of the Hugging Face hub.

    Args:
        model: With what its metadata say of its training.
        name: Of the folder.
        run: Its description, as `runs.read_run` gives it.
        license: Of the weights, None if nobody said.
        data: What it was trained on, None if nobody said.
        rows: Of the table of scores.
        caption: What to say of these scores.
        notes: Markdown behind the scores.
    """
    # The hub takes names of its data sets alone; anything else stands in the text.
    names = [part.strip() for part in (data or "").split(",")]
    datasets = names if all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", part) for part in names) else None
    head = ModelCardData(library_name="wavcube_plugins", tags=list(TAGS), license=license, datasets=datasets)
    card = ModelCard.from_template(
        head,
        template_str=_TEMPLATE,
        name=name,
        paper=PAPER,
        latent_dim=model.latent_dim,
        sizes=_table([{"what": key, "value": value} for key, value in _sizes(model).items()]),
        training=_table([{"what": key, "value": value} for key, value in _training(model, run, data).items()]),
        scores=f"{_table(rows)}\n\n{caption}" if rows else "None were measured.",
        notes=notes.strip() if notes else "",
        limits=_limits(model),
        license=license,
    )
    return f"{str(card).rstrip()}\n"


def _sizes(model: WavCube) -> dict[str, str]:
    config = model.config
    compressed = "" if config.wavlm_layer == -1 else f", of which hidden state {config.wavlm_layer} is compressed"
    return {
        "sample rate": f"{model.sample_rate:,} Hz",
        "latent": f"{model.latent_dim} numbers per frame, {model.frame_rate:g} frames per second",
        "bottleneck": config.bottleneck.kind,
        "encoder": f"{config.wavlm.num_layers} layers of {config.wavlm.hidden_dim}{compressed}",
        "decoder": f"{config.decoder.num_layers} layers of {config.decoder.dim} and "
        f"{config.decoder.vocoder_layers} of {config.decoder.vocoder_dim}",
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
    }


def _training(model: WavCube, run: Mapping[str, Any], data: str | None) -> dict[str, str]:
    metadata, settings = model.metadata, dict(run["settings"])
    stage = int(metadata.get("stage", 0))
    if stage in STAGE_WEIGHTS and settings.get("adversarial_from") is None:
        settings["adversarial_from"] = STAGE_WEIGHTS[stage].adversarial_from
    steps = metadata.get("global_step", "")
    earlier = [(part["until"], _of_interest(part["settings"])) for part in run.get("earlier", ())]
    return {
        "stage": _STAGES.get(stage, "unknown"),
        "steps": f"{int(steps):,}" if steps.isdecimal() else "unknown",
        "started from": metadata.get("origin", "unknown"),
        "data": data or "not stated",
        **_of_interest(settings),
        **{
            f"until step {until:,}": ", ".join(f"{label} {value}" for label, value in part.items())
            for until, part in earlier
            if part
        },
    }


def _limits(model: WavCube) -> list[str]:
    limits: list[str] = list(_LIMITS)
    if int(model.metadata.get("stage", 0)) == 1:
        limits.insert(0, "The latent of stage 1 keeps meaning and drops much of the voice; stage 2 restores the voice.")
    if model.config.bottleneck.kind != "ae":
        limits.insert(0, "The latent is the mean; nothing is sampled at inference.")
    return limits


def _of_interest(settings: Mapping[str, object]) -> dict[str, str]:
    return {
        label: value if isinstance(value, str) else f"{value:g}"
        for key, label in _SETTINGS.items()
        if isinstance(value := settings.get(key), (int, float, str)) and (key, value) != ("processes", 1)
    }


def _table(rows: list[dict[str, float | str]]) -> str:
    heads = list(dict.fromkeys(name for row in rows for name in row))
    lines = [
        list(map(_cell, heads)),
        ["---"] * len(heads),
        *([_cell(row.get(head, "")) for head in heads] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "\\|").split())
