"""Slots marked within transcripts: each slot is opened by a tag with its name and closed by a common one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

CLOSE = "</>"


def opening(name: str) -> str:
    """Return the tag that opens a slot."""
    return f"<{name}>"


def tag_text(text: str, slots: Sequence[Sequence[str]]) -> list[str]:
    """Return the characters of a text with tags around its slots.

    >>> "".join(tag_text("lights in the hall", [["room", "hall"]]))
    'lights in the <room>hall</>'

    Args:
        text: Words separated by single spaces.
        slots: [name, words] each. Words that do not occur, or only within an earlier slot, are skipped.
    """
    spans: list[tuple[int, int, str]] = []
    padded = f" {text} "
    for name, value in slots:
        begin = -1
        while (begin := padded.find(f" {value} ", begin + 1)) >= 0:
            span = (begin, begin + len(value))
            if all(span[1] <= other[0] or span[0] >= other[1] for other in spans):
                spans.append((*span, name))
                break
    units, position = [], 0
    for begin, end, name in sorted(spans):
        units += [*text[position:begin], opening(name), *text[begin:end], CLOSE]
        position = end
    return units + list(text[position:])


def read_tags(units: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the slots [(name, words), ...] of characters and tags: the inverse of `tag_text`.

    A recogniser may leave a slot open; it then ends where the next one begins, or with the text.

    >>> read_tags(tag_text("lights in the hall", [["room", "hall"]]))
    ('lights in the hall', [('room', 'hall')])
    """
    text, slots, name, value = "", [], None, ""
    for unit in [*units, CLOSE]:
        if len(unit) == 1:
            text += unit
            value += unit
            continue
        if name is not None and value.strip():
            slots.append((name, " ".join(value.split())))
        name, value = (None if unit == CLOSE else unit[1:-1]), ""
    return " ".join(text.split()), slots


def slot_f1(pairs: Sequence[tuple[Sequence, Sequence]]) -> float:
    """Return the F1 score of slots in percent over (true, found) pairs of all utterances; name and words must match."""
    right = true_count = found_count = 0
    for true, found in pairs:
        true, found = Counter(map(tuple, true)), Counter(map(tuple, found))
        right += sum((true & found).values())
        true_count += sum(true.values())
        found_count += sum(found.values())
    return 100.0 if not true_count and not found_count else 200 * right / (true_count + found_count)
