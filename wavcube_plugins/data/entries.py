"""One JSON object of a manifest: what it says about the audio is obeyed, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wavcube_plugins.data.lhotse_cuts import LhotseCut, check_sources, has_lhotse
from wavcube_plugins.data.utterance import Base, ManifestError, Utterance, clean_id, path_id

AUDIO_KEYS = ("audio_filepath", "audio", "audio_path", "path", "wav", "file")
ID_KEYS = ("id", "utt_id", "utt", "key")
START_KEYS = ("start", "offset")

# What other tools write about the audio, and is not read here.
_REFUSED_KEYS = ("transforms", "tracks", "channel_selector", "begin", "start_time", "end_time", "frame_offset")

# Seconds that two statements about one length may differ by: manifests round them.
_TOLERANCE = 0.01


class _Beyond(Exception):
    """A Lhotse cut that only Lhotse itself can read; the message says why."""


def parse_entry(entry: object, where: str, base: Base) -> Utterance:
    """Return the piece of speech that a JSON value describes.

    Args:
        entry: The value, an object with the keys in `manifests.read_manifest`.
        where: The file and line, for messages.
        base: What relative paths refer to.

    Raises:
        ManifestError: it names no audio, or says something about the audio that cannot be obeyed.
    """
    if not isinstance(entry, Mapping):
        raise ManifestError(f"{where}: expected a JSON object, found {json.dumps(entry)[:40]}")
    entry = {key: value for key, value in entry.items() if value is not None}  # null is as good as nothing
    if _is_lhotse(entry):
        check_sources(entry, where)
        try:
            return _parse_lhotse(entry, where, base)
        except _Beyond as reason:
            if has_lhotse():
                return LhotseCut.from_entry(entry, _name(entry, "", None, where), where, base)
            raise ManifestError(
                f"{where}: {reason}, which only Lhotse itself reads; from a clone: pip install '.[lhotse]'"
            ) from None
    audio = next((entry[key] for key in AUDIO_KEYS if key in entry), None)
    if audio is None:
        hint = "; a Lhotse supervision is used with its recording: lhotse cut simple" if "recording_id" in entry else ""
        keys = ", ".join(AUDIO_KEYS)
        raise ManifestError(f"{where}: names no audio; expected one of {keys} or recording.sources{hint}")
    if not isinstance(audio, str):
        raise ManifestError(f"{where}: the audio's path must be text, found {audio!r}")
    for key in _REFUSED_KEYS:
        if entry.get(key) not in (None, [], {}):
            raise ManifestError(f"{where}: has {key!r}, which is not read; use start, duration, end and channel")
    begin, duration = _span(entry, where)
    channel = entry.get("channel")
    if isinstance(channel, list) and len(channel) == 1:
        channel = channel[0]
    if channel is not None and (isinstance(channel, bool) or not isinstance(channel, int) or channel < 0):
        raise ManifestError(f"{where}: the channel must be one number counted from 0, found {channel!r}")
    name = _name(entry, audio, begin, where)
    return Utterance(name, base.locate(audio, where), float(begin or 0), duration, channel)


def _span(entry: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    """Return start and duration in seconds; a duration alone describes the whole file, and both are None."""
    for name in (*START_KEYS, "end", "duration"):
        # A duration that describes the whole file is not used.
        if name in entry and (name != "duration" or any(key in entry for key in (*START_KEYS, "end"))):
            _check_seconds(entry[name], "beginning" if name in START_KEYS else name, where)
    begins = [entry[key] for key in START_KEYS if key in entry]
    if len(begins) == 2 and begins[0] != begins[1]:
        raise ManifestError(f"{where}: start is {begins[0]} s, but offset is {begins[1]} s")
    begin, end = begins[0] if begins else None, entry.get("end")
    if begin is None and end is None:
        return None, None
    duration = entry.get("duration")
    if end is not None:
        length = end - (begin or 0)
        if begin is not None and duration is not None and abs(length - duration) > _TOLERANCE:
            raise ManifestError(f"{where}: lasts {length:g} s until its end, but its duration is {duration:g} s")
        duration = duration if begin is not None and duration is not None else length
    if duration is not None and duration <= 0:
        raise ManifestError(f"{where}: the duration is {duration:g} seconds")
    return begin, duration


def _check_seconds(value: object, name: str, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ManifestError(f"{where}: the {name} must be a number of seconds, found {value!r}")


def _name(entry: Mapping[str, Any], audio: str, begin: float | None, where: str) -> str:
    name = next((str(entry[key]) for key in ID_KEYS if key in entry), None)
    if name is None:
        name = path_id(audio)
        if begin is not None:
            name += f"-{round(begin * 1000):08d}"
    return clean_id(name, where)


# Lhotse ---------------------------------------------------------------------------------------------------------------


def _is_lhotse(entry: Mapping[str, Any]) -> bool:
    return "tracks" in entry or (
        not any(key in entry for key in AUDIO_KEYS) and bool({"recording", "sources"} & entry.keys())
    )


def _parse_lhotse(entry: Mapping[str, Any], where: str, base: Base) -> Utterance:
    """Return the piece of a plain MonoCut or Recording: one file, one channel or all of them, nothing done to it."""
    kind = entry.get("type", "MonoCut")
    if kind not in ("MonoCut", "Cut") or "tracks" in entry:
        raise _Beyond(f"a {kind if 'tracks' not in entry else 'MixedCut'}")
    recording = entry.get("recording", entry)
    sources = recording.get("sources") if isinstance(recording, Mapping) else None
    if not isinstance(sources, list) or not all(isinstance(source, Mapping) for source in sources) or not sources:
        raise ManifestError(f"{where}: its recording names no sources")
    if len(sources) > 1:
        raise _Beyond(f"a recording of {len(sources)} sources")
    source = sources[0]
    if source.get("type", "file") != "file":
        raise _Beyond(f"a source of the type {source['type']!r}")
    if not isinstance(source.get("source"), str):
        raise ManifestError(f"{where}: the audio's path must be text, found {source.get('source')!r}")
    for part in (entry, recording):
        if part.get("transforms"):
            names = ", ".join(sorted({_transform_name(transform) for transform in part["transforms"]}))
            raise _Beyond(f"a recording with transforms ({names})")
    begin, duration = _span(entry, where) if "recording" in entry else (None, None)
    channel = _channel(entry.get("channel"), source.get("channels"), where)
    _check_supervisions(entry, duration)
    name = _name(entry, source["source"], begin, where)
    return Utterance(name, base.locate(source["source"], where), float(begin or 0), duration, channel)


def _transform_name(transform: object) -> str:
    return str(transform.get("name", transform)) if isinstance(transform, Mapping) else str(transform)


def _channel(wanted: object, channels: object, where: str) -> int | None:
    """Return which channel of the file a cut is; None where the file has no other."""
    if isinstance(wanted, list):
        if len(wanted) != 1:
            raise _Beyond(f"a cut of {len(wanted)} channels")
        wanted = wanted[0]
    if wanted is None or wanted == channels or [wanted] == channels:
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise ManifestError(f"{where}: the channel must be one number counted from 0, found {wanted!r}")
    if not isinstance(channels, list):
        return wanted
    if wanted not in channels:
        raise ManifestError(f"{where}: channel {wanted} is not among the channels {channels} of its source")
    return channels.index(wanted)


def _check_supervisions(entry: Mapping[str, Any], duration: float | None) -> None:
    """Check that the supervisions describe the whole cut: else its text is that of a part of the audio."""
    supervisions = entry.get("supervisions") or []
    if not isinstance(supervisions, list) or len(supervisions) > 1:
        raise _Beyond(f"a cut of {len(supervisions)} supervisions")
    for supervision in supervisions:
        if not isinstance(supervision, Mapping):
            raise _Beyond("a supervision that is not an object")
        start, length = supervision.get("start", 0), supervision.get("duration", duration)
        partial = start > _TOLERANCE or (
            duration is not None and length is not None and start + length < duration - _TOLERANCE
        )
        if partial:
            raise _Beyond("a cut with a supervision of a part of it (lhotse cut trim-to-supervisions makes plain cuts)")
        if "channel" in supervision and supervision["channel"] != entry.get("channel", supervision["channel"]):
            raise _Beyond(f"a supervision of channel {supervision['channel']}")
