"""The mini SUPERB: the corpus of every task in its own layout, synthesised on the spot, and a bench file for them.

The speech comes from `wavcube_plugins.synthetic.mini`. The rows are nano's latent, the teacher it was made from, and
s3prl's log-mel.
"""

from __future__ import annotations

import filecmp
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wavcube_plugins.superb.mini_corpora import BUILDERS, LISTS, write_text
from wavcube_plugins.superb.mini_settings import RATES, SETTINGS, SHORT_SETTINGS
from wavcube_plugins.superb.rows import BenchError
from wavcube_plugins.synthetic.mini import make_mini

BENCH_NAME = "bench.yaml"
_OPTIONS = "only_hidden_states.yaml"


@dataclass(frozen=True)
class Size:
    """The number of utterances in train, valid and test of one set."""

    train: int
    valid: int
    test: int

    def split(self) -> dict[str, int]:
        """Return the numbers by the names of the splits."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


# The speech of `make superb-mini`, and of its short form for tests.
FULL: Mapping[str, Size] = {
    "read": Size(400, 40, 80),
    "verification": Size(240, 1, 64),
    "keywords": Size(480, 96, 192),
    "commands": Size(400, 40, 100),
    "emotion": Size(320, 1, 1),
    "mixture": Size(160, 16, 40),
    "noisy": Size(160, 16, 40),
}
SHORT: Mapping[str, Size] = {
    "read": Size(24, 4, 6),
    "verification": Size(24, 6, 16),
    "keywords": Size(48, 24, 24),
    "commands": Size(24, 6, 6),
    "emotion": Size(40, 1, 1),
    "mixture": Size(8, 3, 3),
    "noisy": Size(8, 3, 3),
}


def make(folder: Path, *, short: bool = False, progress: bool = True) -> Path:
    """Make the corpora, nano's teacher as an upstream, and the bench file, or whatever of them is missing.

    Args:
        folder: Where everything goes.
        short: A few utterances and steps, which show that a task runs but teach it nothing.
        progress: Show progress bars.

    Returns:
        The bench file.

    Raises:
        BenchError: the folder holds the other form, or another bench.
    """
    title = "mini SUPERB, short form" if short else "mini SUPERB"
    path = folder / BENCH_NAME
    if path.is_file():
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("title") != title:
            raise BenchError(f"{path}: is not the bench file of the {title}; choose a new folder")
    sets = {}
    for name, size in (SHORT if short else FULL).items():
        sets[name] = folder / "speech" / name
        make_mini(sets[name], name, size.split(), speakers=10 if name == "emotion" else 12, progress=progress)
    for name, (needs, build) in BUILDERS.items():
        target = folder / "corpora" / name
        if not target.is_dir():
            # The whole corpus appears at once, so that an interruption leaves none or all of it.
            temporary = target.with_name(f".{name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            build(temporary, sets[needs])
            temporary.rename(target)
    save_teacher(folder / "teacher")
    if not path.is_file():  # the user may have edited it
        write_text(folder / _OPTIONS, "only_hidden_states: true\n")
        header = "# The mini SUPERB, written by `wavcube superb mini`; wavcube superb run bench.yaml\n"
        write_text(path, header + yaml.safe_dump(_bench(title, short), sort_keys=False))
    return path


def _bench(title: str, short: bool) -> dict[str, Any]:
    """Return the contents of the bench file."""
    settings = SHORT_SETTINGS if short else SETTINGS
    return {
        "title": title,
        "published": False,
        "offline": True,
        "out": ".",
        "device": "cpu",
        "workers": 0,
        "rows": {
            "nano": {"upstream": "wavcube", "checkpoint": "nano", "options": _OPTIONS},
            "teacher": {"upstream": "wavcube_layers", "checkpoint": "teacher", "options": _OPTIONS},
            "log-mel": {"upstream": "fbank_no_cmvn"},
        },
        "corpora": {name: f"corpora/{place}" for name, place in ({name: name for name in BUILDERS} | LISTS).items()},
        "settings": {name: dict(values) for name, values in settings.items()},
        "learning_rates": dict(RATES),
    }


def save_teacher(folder: Path) -> None:
    """Save nano with its teacher in place of its own WavLM; as `wavcube_layers` it is the teacher's layers.

    Files with the same content stay as they are. Those of an earlier release are replaced, and then runs that began
    with them are refused, as with any changed file.
    """
    from wavcube_plugins.checkpoints import load_model, save_model
    from wavcube_plugins.checkpoints.backbones import load_backbone

    model = load_model("nano")
    model.wavlm.load_state_dict(load_backbone("nano").state_dict())
    name = "model.safetensors"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".teacher.") as temporary:
        save_model(model, temporary)
        if not (folder / name).is_file() or not filecmp.cmp(folder / name, Path(temporary) / name, shallow=False):
            save_model(model, folder)
