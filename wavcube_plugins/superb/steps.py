"""The steps of each task's run: training, evaluations, and the scores that s3prl leaves to other tools."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wavcube_plugins.data.corpora import quesst14
from wavcube_plugins.superb import scoring
from wavcube_plugins.superb.caches import CACHES
from wavcube_plugins.superb.job import Job, TaskError
from wavcube_plugins.superb.runs import checkpoint_steps
from wavcube_plugins.superb.tasks import numbers


class OutputError(ValueError):
    """s3prl's output lacks a score."""


def steps_of(task_name: str) -> Callable[[Job], Iterator[None]]:
    """Return the generator function with the steps of a task's runs."""
    return _STEPS.get(task_name, _ordinary)


def _train(job: Job) -> Iterator[None]:
    task = job.run.task
    if "train" not in job.results():
        if task.name in CACHES:
            CACHES[task.name](job)
        for half in job.exp.glob(".*.tmp*") if job.exp.is_dir() else ():
            half.unlink(missing_ok=True)

    def read(output: str) -> dict[str, Any]:
        values = numbers(task.decides.printed, output) if task.decides.printed else []
        best = math.nan
        for value in values:
            best = value if task.decides.better(value, best) else best
        return {"dev": best * task.decides.scale}

    yield from job.command("train", job.run.train_command(), read)


def _ordinary(job: Job) -> Iterator[None]:
    task = job.run.task
    yield from _train(job)
    checkpoint, note = _best_checkpoint(job)

    def read(output: str) -> dict[str, Any]:
        scores = {metric.name: metric.read(output) for metric in task.metrics}
        missing = [name for name, value in scores.items() if value is None]
        if missing:
            raise OutputError(f"s3prl printed no {missing[0]} of {task.split}")
        return scores

    yield from job.command("evaluate", job.run.evaluate_command(checkpoint), read)
    steps = job.results()
    job.finish({metric.name: steps["evaluate"][metric.name] for metric in task.metrics}, steps["train"]["dev"], note)


def _best_checkpoint(job: Job) -> tuple[str, str]:
    """Return the name of the best checkpoint, or of the last one and a note.

    s3prl writes no best checkpoint while the score on dev stays at its initial value.
    """
    best = job.run.task.best
    if (job.exp / best).is_file():
        return best, ""
    last = f"states-{checkpoint_steps(job.runner)[-1]}.ckpt"
    if not (job.exp / last).is_file():
        raise TaskError(f"{job.exp}: neither {best} nor {last} exists; remove the run's folder and run it again")
    return last, "dev never improved on its initial value, so the last checkpoint was tested"


def _verification(job: Job) -> Iterator[None]:
    (metric,) = job.run.task.metrics
    yield from _train(job)
    best = math.inf
    for step in checkpoint_steps(job.runner):

        def read(output: str) -> dict[str, Any]:
            value = metric.read(output)
            if value is None:
                raise OutputError("s3prl printed no test EER")
            return {"eer": value}

        name = f"states-{step}"
        command = job.run.evaluate_command(f"{name}.ckpt", f"{job.run.expdir}/{name}")
        yield from job.command(name, command, read)
        best = min(best, job.results()[name]["eer"])
    job.finish({"eer": best}, best)


def _diarization(job: Job) -> Iterator[None]:
    yield from _train(job)
    checkpoint, note = _best_checkpoint(job)
    yield from job.command("evaluate", job.run.evaluate_command(checkpoint), lambda output: {})

    def score() -> dict[str, Any]:
        predictions = scoring.read_predictions(job.exp / "scoring/predictions")
        reference = scoring.read_rttm(job.run.bench.prepared(job.run.task) / "test/rttm")
        samples = int((job.exp / "frame_shift").read_text())
        der, threshold, median = scoring.least_diarization_error(predictions, reference, samples / 16000)
        return {"der": 100 * der, "threshold": threshold, "median": median}

    yield from job.compute("der", score)
    steps = job.results()
    job.finish({"der": steps["der"]["der"]}, steps["train"]["dev"], note)


def _query(job: Job) -> Iterator[None]:
    root = Path(job.value("downstream_expert.datarc.dataset_root"))
    for split, name in (("dev", "dev"), ("test", "eval")):
        (job.exp / split).mkdir(parents=True, exist_ok=True)
        yield from job.command(split, job.run.match_command(split), lambda output: {})

        def score(split: str = split, name: str = name) -> dict[str, Any]:
            scores = scoring.read_detections(job.exp / split / "benchmark.stdlist.xml")
            documents = {document for found in scores.values() for document in found}
            truth = scoring.read_truth(quesst14.find_truth(root, name), scores, documents)
            return {"mtwv": 100 * scoring.maximum_term_weighted_value(scores, truth)}

        yield from job.compute(f"{split} mtwv", score)
    steps = job.results()
    job.finish({"mtwv": steps["test mtwv"]["mtwv"]}, steps["dev mtwv"]["mtwv"])


def _conversion(job: Job) -> Iterator[None]:
    from wavcube_plugins.superb import conversion

    yield from _train(job)
    target = Path(job.value("downstream_expert.datarc.data_root")) / job.run.variant
    steps = range(job.runner["eval_step"], job.runner["total_steps"] + 1, job.runner["eval_step"])
    for step in steps:
        converted = job.exp / str(step) / "test" / "wav"
        yield from job.compute(f"mcd {step}", lambda converted=converted: conversion.distortion(converted, target))
    known = job.results()
    step = min(steps, key=lambda number: known[f"mcd {number}"]["mcd"])
    scores = {"mcd": known[f"mcd {step}"]["mcd"]}
    judges = conversion.find_judges(target.parent)
    if judges is not None:
        folder = job.exp / str(step) / "test" / "wav"
        yield from job.compute("judges", lambda: judges.measure(folder, target))
        scores |= {name: job.results()["judges"][name] for name in ("wer", "asv") if name in job.results()["judges"]}
    job.finish(scores, scores["mcd"])


_STEPS: Mapping[str, Callable[[Job], Iterator[None]]] = {
    "asv": _verification, "sd": _diarization, "qbe": _query, "vc": _conversion,
}  # fmt: skip
