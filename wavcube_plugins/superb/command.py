"""The subcommands of `wavcube superb`; nothing heavy is imported until one runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wavcube_plugins.errors import FAILED, OK, InputError

if TYPE_CHECKING:
    from wavcube_plugins.superb.bench import Bench
    from wavcube_plugins.superb.corpora import Site
    from wavcube_plugins.superb.job import Job
    from wavcube_plugins.superb.results import Table
    from wavcube_plugins.superb.runs import Run

EXAMPLE = """\
title: SUPERB
out: superb/                       # everything goes below here
device: cuda
s3prl: ~/s3prl                     # a clone, for the lists that s3prl's wheel lacks
rows:
  WavCube: {upstream: wavcube}
  Fbank: {upstream: fbank}
corpora:
  librispeech: /data/LibriSpeech
  voxceleb1: /data/VoxCeleb1
tasks: [pr, asr, sid]"""


def add_subcommands(command: argparse.ArgumentParser, parser_class: type[argparse.ArgumentParser]) -> None:
    """Give the parser of `wavcube superb` its subcommands.

    Args:
        command: That parser.
        parser_class: The class of the subcommands' parsers.
    """
    actions = command.add_subparsers(dest="action", metavar="ACTION", title="actions", parser_class=parser_class)

    def add(name: str, run: Callable, summary: str, example: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=summary, description=summary, epilog=f"example:\n  {example}")
        action.set_defaults(act=run)
        return action

    action = add("plan", _plan, "print the command lines that would run", "wavcube superb plan bench.yaml --tasks sid")
    _add_choices(action)
    action = add(
        "prepare", _prepare, "check every corpus, and make the lists s3prl needs", "wavcube superb prepare bench.yaml"
    )
    _add_choices(action)
    action.add_argument("--check", action="store_true", help="only print what would be made")
    action = add(
        "run", _run, "run what is not done yet; resumes after any stop", "wavcube superb run bench.yaml --gpus 0,1"
    )
    _add_choices(action)
    action.add_argument("--jobs", type=int, metavar="N", help="runs side by side; default: one, or one per GPU named")
    action.add_argument("--gpus", metavar="NAMES", help="GPUs to use, comma-separated; one run on each")
    action.add_argument("--device", choices=("cpu", "cuda"), help="override the bench file's device")
    action = add("collect", _collect, "print and save the results and a plot", "wavcube superb collect bench.yaml")
    _add_choices(action)
    action.add_argument("--only-measured", action="store_true", help="leave out the published rows")
    action = add("score", _score, "print the SUPERB score of every row", "wavcube superb score bench.yaml")
    _add_choices(action)
    action.add_argument("--constants", type=Path, metavar="FILE", help="YAML with `fbank`, `sota`, `source` and `date`")
    action.add_argument(
        "--between", metavar="ZERO,ONE", help="two rows of the results, in place of Fbank and the best known result"
    )
    action = add("mini", _mini, "make the mini SUPERB, and run it", "wavcube superb mini superb_mini/")
    action.add_argument("folder", metavar="FOLDER", type=Path, help="where everything goes")
    action.add_argument("--only-make", action="store_true", help="make the speech and the bench file, and run nothing")
    action.add_argument("--short", action="store_true", help="a few utterances and steps, to see that every task runs")
    action.add_argument("--tasks", metavar="NAMES", help="only these tasks, comma-separated")
    action.add_argument("--jobs", type=int, metavar="N", help="runs side by side; default: one per core")


def _add_choices(action: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a bench and some of its runs."""
    action.add_argument("bench", metavar="BENCH", type=Path, help="the bench file (YAML); see wavcube superb --help")
    action.add_argument(
        "--tasks", metavar="NAMES", help="only these tasks, comma-separated: pr,asr,ks,qbe,sid,asv,sd,er,…"
    )
    action.add_argument("--rows", metavar="LABELS", help="only these rows, comma-separated")
    action.add_argument(
        "--features", metavar="NAMES", help="more rows for every WavCube row: layers, restored, wavlm, latent"
    )
    rates = action.add_mutually_exclusive_group()
    rates.add_argument("--sweep", action="store_true", help="try the protocol's learning rates, 1e-1 … 1e-7")
    rates.add_argument("--lr", metavar="RATES", help="try these learning rates, comma-separated")


def main(arguments: argparse.Namespace) -> int:
    """Run a subcommand and return its exit code; errors are raised for `wavcube` to report."""
    if getattr(arguments, "act", None) is None:
        raise InputError("name an action: plan, prepare, run, collect, score or mini (see wavcube superb --help)")
    return arguments.act(arguments)


def _bench(arguments: argparse.Namespace) -> Bench:
    from wavcube_plugins.superb.bench_file import read_bench
    from wavcube_plugins.superb.rows import BenchError
    from wavcube_plugins.superb.tasks import find_tasks

    bench = read_bench(arguments.bench)
    if arguments.features:
        bench.add_features(_names(arguments.features))
    if arguments.tasks:
        bench.tasks = find_tasks([name.lower() for name in _names(arguments.tasks)])
    if arguments.rows:
        labels = _names(arguments.rows)
        known = [row.label for row in bench.rows]
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise BenchError(f"no row {unknown[0]!r}; there are {', '.join(known)}")
        bench.rows = [row for row in bench.rows if row.label in labels]
    if getattr(arguments, "device", None):
        bench.device = arguments.device
    return bench


def _runs(bench: Bench, arguments: argparse.Namespace) -> list[Run]:
    from wavcube_plugins.superb.runs import make_runs

    try:
        rates = [float(rate) for rate in _names(arguments.lr)] if arguments.lr else None
    except ValueError as error:
        raise InputError(f"--lr takes numbers, got {arguments.lr!r}") from error
    if rates and any(not rate > 0 for rate in rates):
        raise InputError(f"--lr takes numbers above 0, got {arguments.lr!r}")
    return make_runs(bench, sweep=arguments.sweep, rates=rates)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _plan(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb.bench import CODE
    from wavcube_plugins.superb.corpora import survey
    from wavcube_plugins.superb.runs import shell

    bench = _bench(arguments)
    runs = _runs(bench, arguments)
    print(f"# {len(runs)} runs, in {bench.folder}; `wavcube superb prepare` puts s3prl's code into {CODE}/ there")
    print(f"cd {bench.folder}\nexport PYTHONPATH={bench.code}")
    for task in bench.tasks:
        site = survey(bench, task)
        print(f"\n# {task.name.upper()}: {task.title.lower()}" + (f"; {task.rule}" if task.rule else ""))
        for sentence in site.missing:
            print(f"# missing: {sentence}")
        config = bench.write_config(task, site.paths)
        for index, run in enumerate(one for one in runs if one.task is task):
            if not index and (note := run.planned_note(config)):
                print(f"# {note}")
            print(f"# {run.name}" + (", done" if run.state().get("done") else ""))
            for command in run.planned_commands(config):
                print(shell(command))
    return OK


def _survey(bench: Bench, *, write: bool) -> dict[str, Site]:
    from wavcube_plugins.superb.corpora import survey

    return {task.name: survey(bench, task, write=write) for task in bench.tasks}


def _prepare(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb.running import missing_packages, set_up

    bench = _bench(arguments)
    sites = _survey(bench, write=not arguments.check)
    if not arguments.check:
        set_up(bench)
    for site in sites.values():
        print(f"{site.task.name.upper()}: {'ready' if site.ready else 'not ready'}")
        for word, sentences in (("found", site.found), ("would make" if arguments.check else "made", site.made)):
            for sentence in sentences:
                print(f"  {word} {sentence}")
        for sentence in site.missing:
            print(f"  missing: {sentence}")
    lost = missing_packages(bench.tasks)
    for sentence in lost:
        print(f"missing package: {sentence}")
    ready = sum(site.ready for site in sites.values())
    print(f"{ready} of {len(sites)} tasks are ready")
    return OK if ready == len(sites) and not lost else FAILED


def _run(arguments: argparse.Namespace) -> int:
    bench = _bench(arguments)
    return _execute(bench, _runs(bench, arguments), arguments.jobs, _names(arguments.gpus or ""))


def _execute(bench: Bench, runs: Sequence, jobs: int | None, gpus: Sequence[str]) -> int:
    from wavcube_plugins.superb.running import execute, make_slots, missing_packages, set_up

    slots = make_slots(bench.device, jobs, gpus)
    lost = missing_packages(bench.tasks)
    if lost:
        raise ImportError("; ".join(lost))
    sites = _survey(bench, write=True)
    ready = [task for task in bench.tasks if sites[task.name].ready]
    for site in sites.values():
        for sentence in site.missing:
            print(f"{site.task.name.upper()} is left out: {sentence}", file=sys.stderr)
    if not ready:
        raise InputError("no task can run: its corpora are missing; see wavcube superb prepare")
    set_up(bench)
    configs = {task.name: bench.write_config(task, sites[task.name].paths) for task in ready}
    runs = [run for run in runs if run.task.name in configs]
    with _Progress(runs) as progress:
        failed = execute(runs, configs, slots, progress)
    for job in failed:
        print(f"wavcube superb: {job.error}", file=sys.stderr)
    if failed or len(ready) < len(sites):
        print(
            f"{len(failed)} of {len(runs)} runs failed, {len(sites) - len(ready)} tasks were left out", file=sys.stderr
        )
        return FAILED
    return OK


class _Progress:
    """A bar over runs, with the runs in progress beside it."""

    def __init__(self, runs: Sequence):
        from tqdm import tqdm

        done = sum(bool(run.state().get("done")) for run in runs)
        self._bar = tqdm(total=len(runs), initial=done, desc="superb", unit="run", dynamic_ncols=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def __call__(self, running: Sequence[Job], ended: Sequence[Job]) -> None:
        for job in ended:
            scores = job.run.state().get("scores", {})
            found = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            self._bar.write(f"{job.run.name}: {job.error or found}", file=sys.stderr)
            self._bar.update()
        going = (
            f"{job.run.name} {job.doing}" + (f" {job.step[0]}/{job.step[1]}" if job.step[1] else "") for job in running
        )
        self._bar.set_postfix_str("; ".join(going), refresh=True)


def _table(bench: Bench, arguments: argparse.Namespace) -> Table:
    """Collect everything that has been run, at any learning rate, of the chosen rows and tasks."""
    from wavcube_plugins.superb.results import ResultError, collect
    from wavcube_plugins.superb.runs import Run, make_runs

    runs = {run.name: run for run in make_runs(bench)} | {run.name: run for run in _runs(bench, arguments)}
    if not (arguments.lr or arguments.sweep):
        for task in bench.tasks:
            for row in bench.rows:
                for folder in sorted((bench.folder / "runs" / task.name / row.label).glob("lr*")):
                    for variant in bench.variants.get(task.name, task.variants):
                        run = Run(bench, task, row, float(folder.name.removeprefix("lr")), variant)
                        runs.setdefault(run.name, run)
    table = collect(list(runs.values()))
    if not table:
        raise ResultError(f"{bench.folder}: no run is done yet; start with wavcube superb run {arguments.bench}")
    return table


def _collect(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb.results import published_table, save

    bench = _bench(arguments)
    table = _table(bench, arguments)
    others = {} if arguments.only_measured or not bench.published else published_table()
    written = save(bench, table, others)
    print(written[0].read_text(encoding="utf-8"))
    print("saved: " + ", ".join(os.fspath(path) for path in written))
    return OK


def _score(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb.results import published_table
    from wavcube_plugins.superb.score import constants_of, read_constants, superb_score

    bench = _bench(arguments)
    table = _table(bench, arguments)
    others: Table = {}
    if arguments.between:
        names = _names(arguments.between)
        if len(names) != 2:
            raise InputError(f"--between takes two rows, got {arguments.between!r}")
        fbank, sota, source = constants_of(table, *names)
    else:
        if not bench.published and arguments.constants is None:
            raise InputError(
                "this bench is not comparable with published results; name two of its own rows with --between ZERO,ONE"
            )
        fbank, sota, source = read_constants(arguments.constants)
        others = published_table()
    for label, row in [*table.items(), *((f"{name} (published)", row) for name, row in others.items())]:
        value, names = superb_score(row, fbank, sota)
        tasks = ", ".join(name.upper() for name in names)
        print(f"{label:28s} " + (f"{value:7.1f}  over {tasks}" if names else "     –  no task with constants"))
    print(f"0 and 1000 are: {source}")
    return OK


def _mini(arguments: argparse.Namespace) -> int:
    from wavcube_plugins.superb import mini
    from wavcube_plugins.superb.bench_file import read_bench
    from wavcube_plugins.superb.results import collect, save
    from wavcube_plugins.superb.runs import make_runs
    from wavcube_plugins.superb.tasks import find_tasks

    path = mini.make(arguments.folder, short=arguments.short)
    print(f"the bench file is {path}")
    if arguments.only_make:
        return OK
    bench = read_bench(path)
    if arguments.tasks:
        bench.tasks = find_tasks([name.lower() for name in _names(arguments.tasks)])
    status = _execute(bench, make_runs(bench), arguments.jobs or os.cpu_count(), ())
    table = collect(make_runs(bench))
    if table:
        print(save(bench, table, {})[0].read_text(encoding="utf-8"))
    return status
