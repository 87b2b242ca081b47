"""The demo's report: one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

from wavcube_plugins.demo.superb import DemoRun, DemoTask
from wavcube_plugins.evaluation.metrics import Comparison
from wavcube_plugins.evaluation.plots import curves_figure, png_bytes
from wavcube_plugins.files import atomic_path
from wavcube_plugins.synthetic.bundled import Utterance

# What the metrics are called and how they are written; the judges' are there where the judges are installed.
METRICS = {
    "stoi": ("STOI", "{:.3f}"),
    "pesq": ("PESQ-WB", "{:.2f}"),
    "dnsmos": ("DNSMOS", "{:.2f}"),
    "voice": ("voice similarity", "{:.3f}"),
    "si_sdr": ("SI-SDR (dB)", "{:.1f}"),
    "mel_distance": ("log-mel distance", "{:.3f}"),
}
UPSTREAMS = {
    "wavcube": "WavCube",
    "fbank": "log-mel (fbank)",
    "fbank_no_cmvn": "log-mel, not normalised (fbank_no_cmvn)",
}
NOTES = {
    "sid": "Accuracy on {tests} test utterances of {speakers} speakers; guessing gives {chance:.0f} %. "
    "SUPERB's head averages over time and is linear. s3prl's fbank is normalised to zero mean over each utterance, so "
    "that head sees nothing of it and can only guess; the log-mel without that normalisation is the fair comparison.",
    "pr": "Phone error rate on {tests} test utterances, of sentences that were not trained on; 100 % is what "
    "saying nothing costs. The head is linear, frame by frame, with CTC.",
}


_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Reconstruction:
    """An utterance that went through the model: 16-bit WAV files and a PNG, as bytes, and the metrics.

    `judged` is what the installed judges say of it, by name.
    """

    utterance: Utterance
    input_wav: bytes
    output_wav: bytes
    picture: bytes
    comparison: Comparison
    judged: Mapping[str, float] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """All metrics by name, NaN where one is not defined."""
        names = [name for name in METRICS if hasattr(self.comparison, name)]
        return {**{name: getattr(self.comparison, name) for name in names}, **self.judged}


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
    return "–" if math.isnan(value) else METRICS[name][1].format(value)


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
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    labels = [METRICS[name][0] for name in shown(findings.reconstructions)]
    *texts, means = metric_texts(findings.reconstructions)
    return environment.get_template(_TEMPLATE).render(
        findings=findings,
        style=Markup(_STYLE),
        labels=labels,
        texts=texts,
        means=means,
        cards=[*((text, f"mean {label}") for text, label in zip(means, labels, strict=True)), *_cards(findings, tasks)],
        tasks=[_task(task, findings) for task in tasks],
        commands=_commands(findings),
    )


def shown(reconstructions: Sequence[Reconstruction]) -> list[str]:
    """Return the names of the metrics that some reconstruction was measured by, in their order."""
    return [name for name in METRICS if any(name in item.scores for item in reconstructions)]


def metric_texts(reconstructions: Sequence[Reconstruction]) -> list[list[str]]:
    """Return the metrics of each reconstruction as text, and then their means."""
    names = shown(reconstructions)
    rows = [[item.scores.get(name, math.nan) for name in names] for item in reconstructions]
    rows.append([mean(column) for column in zip(*rows, strict=True)])
    return [[metric_text(name, value) for name, value in zip(names, row, strict=True)] for row in rows]


def _cards(findings: Findings, tasks: Sequence[DemoTask]) -> list[tuple[str, str]]:
    """Return WavCube's scores of the tasks for the top of the page, each with what it is."""
    cards = []
    for task in tasks:
        run = next(run for run in findings.runs if run.task.name == task.name and run.upstream == "wavcube")
        cards.append((score_text(run), f"{task.title}, {task.metric_title}"))
    return cards


def _task(task: DemoTask, findings: Findings) -> dict[str, object]:
    """Return what the page shows of a task."""
    runs = [run for run in findings.runs if run.task.name == task.name]
    choose = max if task.higher_is_better else min
    scores = [run.score for run in runs if not run.error and math.isfinite(run.score)]
    rows = []
    for run in runs:
        dev = [value for _, value in run.curves.get("dev", [])]
        rows.append(
            {
                "name": upstream_text(run, findings),
                "score": score_text(run),
                "dev": f"{100 * choose(dev):.1f} %" if dev else "–",
                "seconds": run.seconds,
                "error": run.error,
                "best": bool(scores) and not run.error and run.score == choose(scores),
            }
        )
    curves = {run.upstream: [(step, 100 * value) for step, value in run.curves.get("dev", [])] for run in runs}
    figure = curves_figure(curves, ylabel=f"{task.metric_title} (%)", title="Learning curves on dev")
    tests, speakers = findings.test_sizes
    note = NOTES.get(task.name, "").format(tests=tests, speakers=speakers, chance=100 / speakers)
    return {"task": task, "rows": rows, "note": note, "curves": png_bytes(figure), "examples": _examples(runs)}


def _examples(runs: Sequence[DemoRun]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what was said in a few utterances, and what was recognised with each upstream."""
    said = next((run.examples for run in runs if run.examples), [])
    return [
        (reference, [(run.upstream, run.examples[index][1]) for run in runs if index < len(run.examples)])
        for index, (reference, _) in enumerate(said)
    ]


def _commands(findings: Findings) -> str:
    lines = [f"cd {findings.workspace}", "export PYTHONPATH=$PWD", ""]
    for run in findings.runs:
        lines += [" ".join(command) for command in run.commands] + [""]
    return "\n".join(lines).rstrip()


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
