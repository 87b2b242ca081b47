"""The demo's report: one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wavcube_plugins.demo.superb import DemoRun, DemoTask
from wavcube_plugins.evaluation.metrics import Comparison
from wavcube_plugins.evaluation.plots import curves_figure, png_bytes
from wavcube_plugins.files import atomic_path
from wavcube_plugins.synthetic.bundled import Utterance

METRICS = (
    ("stoi", "STOI", "{:.3f}"),
    ("pesq", "PESQ-WB", "{:.2f}"),
    ("si_sdr", "SI-SDR (dB)", "{:.1f}"),
    ("mel_distance", "log-mel distance", "{:.3f}"),
)
UPSTREAMS = {
    "wavcube": "WavCube",
    "fbank": "log-mel (fbank)",
    "fbank_no_cmvn": "log-mel, not normalised (fbank_no_cmvn)",
}
NOTES = {
    "sid": "Accuracy on {tests} test utterances of {speakers} speakers; guessing gives {chance:.0f}&nbsp;%. "
    "SUPERB's head averages over time and is linear. s3prl's fbank is normalised to zero mean over each utterance, so "
    "that head sees nothing of it and can only guess; the log-mel without that normalisation is the fair comparison.",
    "pr": "Phone error rate on {tests} test utterances, of sentences that were not trained on; 100&nbsp;% is what "
    "saying nothing costs. The head is linear, frame by frame, with CTC.",
}


@dataclass(frozen=True)
class Reconstruction:
    """An utterance that went through the model: 16-bit WAV files and a PNG, as bytes, and the metrics."""

    utterance: Utterance
    input_wav: bytes
    output_wav: bytes
    picture: bytes
    comparison: Comparison


@dataclass(frozen=True)
class Findings:
    """All that the report tells.

    Attributes:
        model: The model's name.
        trained: Whether its weights are.
        model_facts: Lines about it, name and value.
        reconstructions: One per utterance.
        speed: Seconds of audio per second of computing, encoding and decoding.
        runs: The tasks' runs.
        test_sizes: Number of test utterances and of speakers.
        workspace: The folder the commands were run in, as the user would name it.
        facts: Lines about machine, versions and time.
    """

    model: str
    trained: bool
    model_facts: Mapping[str, str]
    reconstructions: Sequence[Reconstruction]
    speed: float
    runs: Sequence[DemoRun]
    test_sizes: tuple[int, int]
    workspace: str
    facts: Mapping[str, str]


def mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values, NaN if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def upstream_text(run: DemoRun, findings: Findings) -> str:
    """Return an upstream's name in words; WavCube's says so if its weights are untrained."""
    name = UPSTREAMS.get(run.upstream, run.upstream)
    return f"{name}, untrained" if run.upstream == "wavcube" and not findings.trained else name


def metric_text(name: str, value: float) -> str:
    """Return a reconstruction metric as text, "–" where it is not defined."""
    template = next(template for key, _, template in METRICS if key == name)
    return "–" if math.isnan(value) else template.format(value)


def score_text(run: DemoRun) -> str:
    """Return a task's score as a percentage, or "failed"."""
    return "failed" if run.error or math.isnan(run.score) else f"{100 * run.score:.1f} %"


def write_report(path: Path, findings: Findings) -> None:
    """Write the page, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(render(findings), encoding="utf-8")


def render(findings: Findings) -> str:
    """Return the page."""
    tasks = list({run.task.name: run.task for run in findings.runs}.values())
    sections = [
        _header(findings, tasks),
        _reconstruction(findings),
        *(_task(task, findings) for task in tasks),
        _how(findings),
    ]
    title = f"WavCube demo · {html.escape(findings.model)}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _header(findings: Findings, tasks: Sequence[DemoTask]) -> str:
    warning = ""
    if not findings.trained:
        warning = (
            '<p class="warning"><strong>These weights are untrained.</strong> '
            f"The model “{html.escape(findings.model)}” was built from a fixed seed and has learned nothing: its "
            "reconstructions are noise, and its task scores are those of a random network. Everything here shows that "
            "the whole way works, and nothing of what a trained model can do.</p>"
        )
    cards = []
    for name, label, _ in METRICS:
        value = mean([getattr(item.comparison, name) for item in findings.reconstructions])
        cards.append((metric_text(name, value), f"mean {label}"))
    for task in tasks:
        run = next(run for run in findings.runs if run.task.name == task.name and run.upstream == "wavcube")
        cards.append((score_text(run), f"{task.title}, {task.metric_title}"))
    boxes = "".join(
        f'<div class="card"><div class="number">{html.escape(value)}</div><div>{html.escape(label)}</div></div>'
        for value, label in cards
    )
    return (
        "<header><h1>WavCube demo</h1>"
        f'<p class="lead">Speech through the model “{html.escape(findings.model)}” and back, and two SUPERB tasks on '
        f"its latent through s3prl.</p>{warning}"
        f'<div class="cards">{boxes}</div></header>'
    )


def _reconstruction(findings: Findings) -> str:
    head = "".join(f"<th>{html.escape(label)}</th>" for _, label, _ in METRICS)
    rows, items = [], []
    for item in findings.reconstructions:
        utterance, comparison = item.utterance, item.comparison
        cells = "".join(f"<td>{metric_text(name, getattr(comparison, name))}</td>" for name, _, _ in METRICS)
        rows.append(f'<tr><td><a href="#{utterance.name}">{html.escape(utterance.name)}</a></td>{cells}</tr>')
        items.append(
            f'<article id="{utterance.name}"><h3>{html.escape(utterance.name)}</h3>'
            f'<p class="text">{html.escape(utterance.text)}</p>'
            f'<div class="players"><label>input {_audio(item.input_wav)}</label>'
            f"<label>output {_audio(item.output_wav)}</label></div>"
            f"<details{'' if items else ' open'}><summary>waveforms and log-mel spectrograms</summary>"
            f"{_image(item.picture, f'Waveforms and log-mel spectrograms of {utterance.name}')}</details></article>"
        )
    means = "".join(
        f"<td>{metric_text(name, mean([getattr(item.comparison, name) for item in findings.reconstructions]))}</td>"
        for name, _, _ in METRICS
    )
    facts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in findings.model_facts.items()
    )
    return (
        "<section><h2>Reconstruction</h2>"
        "<p>Each utterance is encoded to the latent and decoded again. STOI and PESQ are better the higher, the "
        "log-mel distance the lower. SI-SDR compares the waveforms sample by sample, so it is low wherever a decoder "
        "chooses phases of its own, however good that sounds.</p>"
        f'<div class="side"><table><thead><tr><th>utterance</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"<tfoot><tr><td>mean</td>{means}</tr></tfoot></table>"
        f'<table class="facts">{facts}</table></div>{"".join(items)}</section>'
    )


def _task(task: DemoTask, findings: Findings) -> str:
    runs = [run for run in findings.runs if run.task.name == task.name]
    names = {run.name: upstream_text(run, findings) for run in runs}
    scores = [run.score for run in runs if not run.error and math.isfinite(run.score)]
    best = (max(scores) if task.higher_is_better else min(scores)) if scores else None
    rows = []
    for run in runs:
        mark = ' class="best"' if best is not None and not run.error and run.score == best else ""
        dev = [value for _, value in run.curves.get("dev", [])]
        best_dev = (max if task.higher_is_better else min)(dev, default=math.nan)
        rows.append(
            f"<tr{mark}><td>{html.escape(names[run.name])}</td><td>{score_text(run)}</td>"
            f"<td>{f'{100 * best_dev:.1f} %' if dev else '–'}</td><td>{run.seconds:.0f} s</td></tr>"
        )
        if run.error:
            rows.append(f'<tr><td colspan="4" class="failed">{html.escape(run.error)}</td></tr>')
    curves = {run.upstream: [(step, 100 * value) for step, value in run.curves.get("dev", [])] for run in runs}
    figure = curves_figure(curves, ylabel=f"{task.metric_title} (%)", title="Learning curves on dev")
    tests, speakers = findings.test_sizes
    note = NOTES.get(task.name, "").format(tests=tests, speakers=speakers, chance=100 / speakers)
    return (
        f"<section><h2>{html.escape(task.title)}</h2><p>s3prl’s <code>{task.downstream}</code>, "
        f"{task.steps} steps of 8 utterances, upstream frozen. {note}</p>"
        f'<div class="side"><table class="scores"><thead><tr><th>upstream</th>'
        f"<th>test {html.escape(task.metric_title)}</th><th>best dev</th><th>time</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        f"{_image(png_bytes(figure), f'Learning curves of {task.title}')}</div>{_examples(runs)}</section>"
    )


def _examples(runs: Sequence[DemoRun]) -> str:
    said = next((run.examples for run in runs if run.examples), [])
    if not said:
        return ""
    rows = []
    for index, (reference, _) in enumerate(said):
        rows.append(f'<tr class="said"><td>said</td><td>{html.escape(reference)}</td></tr>')
        for run in runs:
            if index < len(run.examples):
                heard = html.escape(run.examples[index][1]) or "<em>nothing</em>"
                rows.append(f"<tr><td>{html.escape(run.upstream)}</td><td>{heard}</td></tr>")
    return f'<h3>What was recognised</h3><table class="phones">{"".join(rows)}</table>'


def _how(findings: Findings) -> str:
    lines = [f"cd {findings.workspace}", "export PYTHONPATH=$PWD", ""]
    for run in findings.runs:
        lines += [" ".join(command) for command in run.commands] + [""]
    facts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in findings.facts.items()
    )
    return (
        "<section><h2>How this was made</h2><p>The speech was synthesised with espeak-ng from sentences written for "
        "this purpose; its phones are exact. The tasks ran through s3prl’s own script and training loop, in a private "
        "copy of the installed package: every file of it is as installed, and where s3prl’s wheel lacks "
        "<code>downstream/ctc/corpus/libriphone.py</code>, which its phone recognition needs, one of ours is beside "
        "them. ESPnet, which s3prl would import at every start, is kept out. The commands:</p>"
        f'<pre>{html.escape(chr(10).join(lines).rstrip())}</pre><table class="facts">{facts}</table></section>'
    )


def _audio(wav: bytes) -> str:
    return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(wav).decode()}"></audio>'


def _image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


_STYLE = """
:root { --ink: #23232b; --soft: #6b6b76; --line: #e3e3e8; --accent: #1f5fa8; --paper: #fff; --ground: #f4f5f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 2.1rem; letter-spacing: -.02em; }
h2 { margin: 0 0 .5rem; font-size: 1.35rem; }
h3 { margin: 1.5rem 0 .25rem; font-size: 1.05rem; }
.lead { margin: .25rem 0 1rem; color: var(--soft); font-size: 1.1rem; }
.warning { background: #fff1ef; border: 1px solid #e9a79f; border-left: 6px solid #c7362b; border-radius: 6px;
  padding: .8rem 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem;
  color: var(--soft); font-size: .86rem; }
.number { color: var(--accent); font-size: 1.6rem; font-weight: 650; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 1.4rem 1.5rem;
  margin-top: 1.4rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .32rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 600; }
tfoot td, .best td { font-weight: 650; }
.best td:nth-child(2) { color: var(--accent); }
td.failed { color: #c7362b; white-space: normal; }
.facts { align-self: start; }
.facts td { white-space: normal; text-align: left; }
.facts td:first-child, .phones td:first-child { color: var(--soft); }
.phones td { text-align: left; white-space: normal; font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: .8rem; }
.phones .said td { border-top: 2px solid var(--line); font-weight: 650; }
.side { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; align-items: flex-start; }
.side img { flex: 1 1 420px; min-width: 0; max-width: 640px; }
.scores { flex: 1 1 380px; }
.scores td:first-child { white-space: normal; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
img { max-width: 100%; height: auto; display: block; }
article { border-top: 1px solid var(--line); margin-top: 1.2rem; }
article .text { margin: 0 0 .4rem; color: var(--soft); }
.players { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin-bottom: .5rem; }
.players label { display: flex; align-items: center; gap: .6rem; font-weight: 600; }
audio { height: 2.2rem; }
pre { background: #23232b; color: #eef; padding: 1rem; border-radius: 8px; overflow-x: auto; font-size: .8rem; }
a { color: var(--accent); }
"""
