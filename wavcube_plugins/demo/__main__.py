"""`python -m wavcube_plugins.demo`: real speech through the model and through s3prl, with a report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from wavcube_plugins.errors import BAD_INPUT, FAILED, INTERRUPTED, OK, InputError

if TYPE_CHECKING:
    from wavcube_plugins.demo.superb import DemoRun

# Marks the folder, so that a second run knows that it replaces the output of a demo.
_MARKER = ".wavcube_demo"
_QUICK_STEPS, _QUICK_UTTERANCES = 8, 2
# Seconds between two lines of progress where there is no terminal.
_LINE_SECONDS = 20.0

_DESCRIPTION = """\
Encodes and decodes the bundled speech, trains and evaluates two SUPERB tasks (speaker identification and phone
recognition) on the latent and on log-mel features through s3prl's own run_downstream.py, and writes a report that is
one HTML page. Needs no network; takes about five minutes on two cores.

A second run into the same folder starts over and replaces what the first one wrote."""
_EPILOG = """\
example:
  python -m wavcube_plugins.demo --out demo_output
  python -m wavcube_plugins.demo --out demo_output --model path/to/model --steps 1000

exit codes: 0 all done, 1 something failed (the report says what), 2 bad arguments, 130 interrupted"""


class DemoError(InputError):
    """The demo cannot write where it was told to."""


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcube_plugins.demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--model", default="nano", help="a preset, folder, checkpoint or hub name, as for load_model (default: nano)"
    )
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help="training steps of each task (default: 300 and 600)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"show only that it works: {_QUICK_STEPS} steps, 2 utterances"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    # Terminating the demo must end its processes, as interrupting it does.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments.out, arguments.model, steps=arguments.steps, quick=arguments.quick)
    except KeyboardInterrupt:
        print("\ninterrupted; run it again to start over", file=sys.stderr)
        return INTERRUPTED
    except (InputError, ImportError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, DemoError) else FAILED
    finally:
        signal.signal(signal.SIGTERM, previous)


def run(out: Path, model_name: str, *, steps: int | None = None, quick: bool = False) -> int:
    """Run the demo.

    Args:
        out: Folder for the results; created, or cleared of an earlier demo.
        model_name: Any source `load_model` takes.
        steps: Training steps of both tasks; None means each task's own.
        quick: A few steps on a few utterances.

    Returns:
        The exit code: 0, or 1 if a task failed.

    Raises:
        DemoError: the folder contains something else.
        WorkspaceError, ImportError: s3prl or another package is missing; the message names the command to install it.
    """
    started = time.monotonic()
    # Before anything slow, so that a missing package is reported at once.
    from wavcube_plugins.checkpoints import NAMES
    from wavcube_plugins.demo import superb
    from wavcube_plugins.demo.report import Findings, write_report
    from wavcube_plugins.synthetic.bundled import bundled_speech, split

    superb.check()
    tasks, parts = _shorten(superb.TASKS, split(bundled_speech()), steps, quick)
    _clear(out)

    print(f"WavCube demo, into {out}\n")
    model = _load(model_name)
    chosen = {utterance.speaker: utterance for utterance in parts["test"]}
    chosen = list(chosen.values())[: _QUICK_UTTERANCES if quick else None]
    print(f"[1/3] {len(chosen)} utterances through {model_name} and back")
    reconstructions, speed = _reconstruct(model, model_name, chosen, out / "reconstruction")
    _print_reconstructions(reconstructions, speed)

    print("\n[2/3] two SUPERB tasks through s3prl's run_downstream.py (logs in the folder tasks)")
    workspace = out / "tasks"
    superb.prepare(workspace, parts, tasks)
    local = model_name not in NAMES and Path(model_name).exists()
    runs = superb.plan(workspace, tasks, str(Path(model_name).resolve()) if local else model_name)
    superb.execute(runs, workspace, _ProgressLine(runs))
    _print_scores(runs)

    seconds = time.monotonic() - started
    findings = Findings(
        model=model_name,
        trained=model.trained,
        model_facts=_model_facts(model, speed),
        reconstructions=reconstructions,
        speed=speed,
        runs=runs,
        test_sizes=(len(parts["test"]), len({utterance.speaker for utterance in parts["test"]})),
        workspace=workspace.as_posix(),
        facts=_facts(seconds),
    )
    write_report(out / "report.html", findings)
    _write_results(out / "results.json", findings)
    return _conclude(out, model, model_name, runs, seconds)


def _conclude(out: Path, model, model_name: str, runs: Sequence[DemoRun], seconds: float) -> int:
    """Print where the report is and what failed, and return the exit code."""
    print(f"\n[3/3] report: {out / 'report.html'} ({(out / 'report.html').stat().st_size / 1e6:.1f} MB)")
    print(f"      {seconds / 60:.1f} minutes in all")
    if not model.trained:
        print(f"\n{_untrained(model_name)}")
    failed = [run for run in runs if run.error]
    for item in failed:
        print(f"failed: {item.name}: {item.error}", file=sys.stderr)
    return FAILED if failed else OK


def _shorten(tasks: Sequence, parts: dict[str, list], steps: int | None, quick: bool) -> tuple[Sequence, dict]:
    """Apply `--steps` and `--quick` to the tasks and to the utterances of each split."""
    steps = steps or (_QUICK_STEPS if quick else None)
    if steps:
        tasks = [dataclasses.replace(task, steps=steps, evaluations=2 if quick else 10) for task in tasks]
    if quick:
        tasks = [dataclasses.replace(task, baselines=task.baselines[:1]) for task in tasks]
        parts = {part: utterances[:: max(1, len(utterances) // 10)] for part, utterances in parts.items()}
    return tasks, parts


class _ProgressLine:
    """Shows the progress of the runs: one line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, runs: Sequence):
        self._runs = runs
        self._width = max(len(run.name) for run in runs)
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        self._done = 0

    def __call__(self, running: Sequence, ended: Sequence) -> None:
        for run in ended:
            self._done += 1
            outcome = f"failed, {run.error}" if run.error else f"{run.task.metric_title} {100 * run.score:.1f} %"
            self._clear_line()
            count = f"{self._done}/{len(self._runs)}"
            print(f"      {count}  {run.name:{self._width}}  {outcome}  ({run.seconds:.0f} s)", flush=True)
        now = time.monotonic()
        if running and (self._terminal or now - self._shown >= _LINE_SECONDS):
            self._shown = now
            text = "   ".join(f"{run.name} {self._stage(run)}" for run in running)
            if self._terminal:
                self._clear_line()
                sys.stderr.write(f"      {text}"[: shutil.get_terminal_size().columns - 1])
                sys.stderr.flush()
            else:
                print(f"      … {text}", flush=True)

    @staticmethod
    def _stage(run) -> str:
        if run.step >= run.task.steps:
            return "on test"
        return f"step {run.step}/{run.task.steps}" if run.step else "starting"

    def _clear_line(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _load(name: str):
    from wavcube_plugins.checkpoints import load_model

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = load_model(name)
    if not model.trained:
        print(f"{_untrained(name)}\n")
    for warning in caught if model.trained else ():
        print(f"note: {warning.message}")
    return model


def _judged(judges: dict, reference, estimate, rate: int) -> dict[str, float]:
    """Return what the judges say of an output, but for those that find no speech in it."""
    from wavcube_plugins.evaluation.metrics import MetricError

    scores = {}
    for name, judge in judges.items():
        with contextlib.suppress(MetricError):
            scores[name] = judge(reference, estimate, rate)
    return scores


def _reconstruct(model, name: str, utterances: Sequence, folder: Path) -> tuple[list, float]:
    import torch

    from wavcube_plugins.audio import read_audio, write_audio
    from wavcube_plugins.demo.report import Reconstruction
    from wavcube_plugins.evaluation.judges import installed_judges
    from wavcube_plugins.evaluation.metrics import compare
    from wavcube_plugins.evaluation.plots import comparison_figure, png_bytes
    from wavcube_plugins.models.lengths import pad_batch

    rate = model.sample_rate
    inputs = [read_audio(utterance.path, rate) for utterance in utterances]
    batch, lengths = pad_batch(inputs)
    with torch.inference_mode():
        # Not timed: the first call of a process sets things up.
        model.reconstruct(batch[:1, :rate], None)
        start = time.monotonic()
        outputs, _ = model.reconstruct(batch, lengths)
    speed = float(lengths.sum()) / rate / (time.monotonic() - start)
    judges = installed_judges()
    label = f"output of {name}" + ("" if model.trained else " (UNTRAINED)")
    results = []
    for index, (utterance, waveform) in enumerate(zip(utterances, inputs, strict=True)):
        output = outputs[index, : lengths[index]].float()
        comparison = compare(waveform, output, rate)
        figure = comparison_figure(
            waveform,
            output,
            rate,
            title=f"{utterance.name}: “{utterance.text}”",
            names=("input", label),
            comparison=comparison,
        )
        files = [folder / f"{utterance.name}.{suffix}" for suffix in ("input.wav", "output.wav", "png")]
        write_audio(files[0], waveform, rate)
        write_audio(files[1], output, rate)
        files[2].write_bytes(png_bytes(figure))
        given, made, picture = (file.read_bytes() for file in files)
        judged = _judged(judges, waveform, output, rate)
        results.append(Reconstruction(utterance, given, made, picture, comparison, judged))
    return results, speed


def _print_reconstructions(reconstructions: Sequence, speed: float) -> None:
    from wavcube_plugins.demo.report import METRICS, metric_texts, shown

    rows = [["utterance", *(METRICS[name][0] for name in shown(reconstructions))]]
    names = [*(item.utterance.name for item in reconstructions), "mean"]
    rows += [[name, *texts] for name, texts in zip(names, metric_texts(reconstructions), strict=True)]
    _print_table(rows)
    print(f"      {speed:.1f} times faster than real time, encoding and decoding together")


def _print_scores(runs: Sequence[DemoRun]) -> None:
    from wavcube_plugins.demo.report import UPSTREAMS, score_text

    rows = [["task", "upstream", "test score"]]
    for run in runs:
        rows.append(
            [run.task.title, UPSTREAMS.get(run.upstream, run.upstream), f"{run.task.metric_title} {score_text(run)}"]
        )
    print()
    _print_table(rows)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        print("      " + "  ".join(cells).rstrip())
        if number == 0:
            print("      " + "  ".join("-" * width for width in widths))


def _model_facts(model, speed: float) -> dict[str, str]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "weights": "trained" if model.trained else "UNTRAINED, random from a fixed seed",
        "parameters": f"{parameters / 1e6:.1f} million",
        "latent": f"{model.latent_dim} numbers at {model.frame_rate:g} Hz",
        "sample rate": f"{model.sample_rate / 1000:g} kHz",
        "speed here": f"{speed:.1f} × real time, encoding and decoding",
    }


def _facts(seconds: float) -> dict[str, str]:
    versions = []
    for package in ("wavcube-plugins", "s3prl", "torch", "torchaudio", "numpy", "pystoi", "pesq"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} (not installed as a package)")
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "time": f"{seconds / 60:.1f} minutes in all",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _write_results(path: Path, findings) -> None:
    from wavcube_plugins.files import atomic_path

    results = {
        "model": findings.model,
        "trained": findings.trained,
        "speed": round(findings.speed, 2),
        "reconstruction": {
            item.utterance.name: {**item.comparison.to_dict(), **item.judged} for item in findings.reconstructions
        },
        "tasks": {
            run.name: {
                "metric": run.task.metric,
                "test": run.score if not run.error else None,
                "dev": run.curves.get("dev", []),
                "seconds": round(run.seconds, 1),
                "error": run.error or None,
                "commands": [" ".join(command) for command in run.commands],
            }
            for run in findings.runs
        },
        **findings.facts,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _clear(out: Path) -> None:
    """Create the folder, or remove what an earlier demo left in it; refuse any other folder."""
    if out.exists():
        if not out.is_dir():
            raise DemoError(f"{out} is a file; choose a folder with --out")
        if any(out.iterdir()) and not (out / _MARKER).is_file():
            raise DemoError(f"{out} holds something other than the output of a demo; choose another folder with --out")
        for name in ("reconstruction", "tasks"):
            if (out / name).exists():
                shutil.rmtree(out / name)
        for name in ("report.html", "results.json"):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()


def _untrained(name: str) -> str:
    line = "!" * 78
    return (
        f"{line}\n!!  THE WEIGHTS OF {name.upper()!r} ARE UNTRAINED: random numbers from a fixed seed.\n"
        "!!  Its output is noise and its scores are a random network's. This run shows\n"
        f"!!  that everything works, but not what a trained model can do.\n{line}"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
