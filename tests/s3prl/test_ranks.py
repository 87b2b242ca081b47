"""s3prl's run_downstream.py in two processes (ranks) on a CPU: it trains, resumes and evaluates."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from helpers.s3prl_environment import installed

from wavcube_plugins.s3prl import ranks
from wavcube_plugins.superb.bench_file import read_bench
from wavcube_plugins.superb.corpora import survey
from wavcube_plugins.superb.running import set_up
from wavcube_plugins.superb.tasks import BY_NAME

pytestmark = pytest.mark.integration

LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
WRAPPED = ("-m", "wavcube_plugins.s3prl.run", "run_downstream.py")
STEPS = {"total_steps": 3, "log_step": 1, "eval_step": 2, "save_step": 1, "max_keep": 9, "gradient_accumulate_steps": 1}


def noise(path, seed, seconds=0.8):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).normal(size=int(16000 * seconds)), 16000)


def voxceleb(folder):
    """Four speakers, and more test files than training batches."""
    lines = []
    for speaker in range(4):
        for take, split in enumerate((1, 1, 1, 1, 2, 2, 3, 3)):
            name = f"id1000{speaker + 1}/clip/{take}.wav"
            noise(folder / "dev/wav" / name, 10 * speaker + take)
            lines.append(f"{split} {name}\n")
    (folder / "test/wav").mkdir(parents=True)
    (folder / "iden_split.txt").write_text("".join(lines))
    return {"voxceleb1": str(folder), "voxceleb1_split": str(folder / "iden_split.txt")}


def librispeech(folder):
    for part, count in (("train-clean-100", 8), ("dev-clean", 3), ("test-clean", 3)):
        for number in range(count):
            noise(folder / part / "7/1" / f"7-1-{number:04d}.flac", number, 1 + 0.1 * number)
        lines = [f"7-1-{number:04d} SOME WORDS\n" for number in range(count)]
        (folder / part / "7/1/7-1.trans.txt").write_text("".join(lines))
    return {"librispeech": str(folder)}


SMALL_RNNS = {
    "total_rate": -1, "module": "LSTM", "bidirection": True, "dim": [16], "dropout": [0], "layer_norm": [False],
    "proj": [False], "sample_rate": [1], "sample_style": "concat",
}  # fmt: skip
TASKS = {
    "sid": (voxceleb, {"datarc.train_batch_size": 2, "datarc.num_workers": 0}, "test acc: "),
    "asr": (
        librispeech,
        {
            "datarc.batch_size": 2,
            "datarc.num_workers": 0,
            "modelrc.project_dim": 16,
            "modelrc.RNNs": {"total_rate": -1, "module": "LSTM", "bidirection": True, "sample_style": "concat"}
            | SMALL_RNNS,
        },
        "test-clean wer: ",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_two_ranks_train_resume_and_evaluate(name, tmp_path):
    make, settings, printed = TASKS[name]
    task = BY_NAME[name]
    settings = {f"downstream_expert.{key}": value for key, value in settings.items()}
    settings |= {f"runner.{key}": value for key, value in STEPS.items()} | ({"specaug": None} if name == "asr" else {})
    found = {"out": "out", "device": "cpu", "rows": {"nano": "wavcube"}, "tasks": [name], "settings": {name: settings}}
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(found | {"corpora": make(tmp_path / "corpus")}))
    bench = read_bench(tmp_path / "bench.yaml")
    site = survey(bench, task, write=True)
    assert site.ready, site.missing
    bench.write_config(task, site.paths)
    set_up(bench)  # a copy of s3prl, since it keeps lists of files in its folder
    environment = {"PYTHONPATH": str(bench.code)}

    train = ("-m", "train", "-a", "-u", "wavcube", "-k", "nano", "-d", task.downstream, "-p", "exp", "--device", "cpu")
    train = (*LAUNCH, *WRAPPED, *train, "-c", bench.config_path(task))
    output = installed().run(*train, cwd=tmp_path, **environment)
    states = torch.load(tmp_path / "exp/states-3.ckpt", weights_only=False)
    assert states["Step"] == 3 and states["WorldSize"] == 2 and states["Args"].backend == "gloo"
    assert "dev" in output and "Error" not in output, output

    # Every rank saw other batches, so the trained head is not the one that a single process trains.
    output = installed().run(*train, "-o", "config.runner.total_steps=5", cwd=tmp_path, **environment)
    assert "Resume from exp/states-3.ckpt" in output
    assert torch.load(tmp_path / "exp/states-5.ckpt", weights_only=False)["Step"] == 5

    evaluate = ("-m", "evaluate", "-t", task.split, "-e", "exp/states-5.ckpt", "--device", "cpu")
    together = installed().run(*LAUNCH, *WRAPPED, *evaluate, cwd=tmp_path, **environment)
    alone = installed().run(*WRAPPED, *evaluate, cwd=tmp_path, **environment)
    scores = [re.findall(re.escape(printed) + r"([\d.]+)", text) for text in (together, alone)]
    assert len(scores[1]) == 1 and set(scores[0]) == set(scores[1])


def test_one_process_and_other_scripts_are_left_alone(tmp_path, monkeypatch):
    script = tmp_path / "run_downstream.py"
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    assert ranks.prepare(script, ["--device", "cpu"]) == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.prepare(tmp_path / "other.py", ["--device", "cpu"]) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "cpu"], ["--local_rank=1", "--backend=gloo"]),
        (["--device=cpu", "--backend", "mpi"], ["--local_rank=1"]),
        ([], ["--local_rank=1"]),
    ],
)
def test_the_rank_and_the_backend_are_given_to_s3prl(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(torch.distributed, "init_process_group", print)
    monkeypatch.setattr(torch.cuda, "set_device", torch.cuda.set_device)
    assert ranks.prepare(tmp_path / "run_downstream.py", arguments) == expected


def test_ranks_do_not_read_lists_that_another_one_is_writing(tmp_path):
    dataset = SimpleNamespace(CACHE_PATH=f"{tmp_path}/.cache/")
    ranks.use_private_lists(dataset)
    assert Path(dataset.CACHE_PATH).is_dir() and not Path(dataset.CACHE_PATH).is_relative_to(tmp_path)
    (tmp_path / ".cache").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / f".cache/{split}.pkl").touch()
    dataset = SimpleNamespace(CACHE_PATH=f"{tmp_path}/.cache/")
    ranks.use_private_lists(dataset)
    assert f"{tmp_path}/.cache/" == dataset.CACHE_PATH


def test_steps_are_counted_on_every_rank_but_the_first():
    """A loop like s3prl's: the question at the end of a step, and `continue` before the bar is advanced."""

    class Bar:
        def __init__(self, iterable=None, total=0, desc=""):
            self.iterable, self.total, self.n = iterable, total, 0

        def update(self, count):
            self.n += count

        def __iter__(self):
            return iter(self.iterable)

    def train(leader):
        runner = SimpleNamespace(tqdm=Bar, is_leader_process=lambda: leader, DDP=None)
        ranks.adapt_runner(runner, on_cpu=True)
        runner.is_leader_process()
        bar = runner.tqdm(total=5, desc="overall")
        runner.is_leader_process()
        bar.n, seen = 1, 0  # resumed
        while bar.n < bar.total:
            for _ in runner.tqdm(range(3), desc="train"):
                if bar.n >= bar.total:
                    break
                seen += 1
                if not runner.is_leader_process():
                    continue
                bar.update(1)
        return seen

    assert train(leader=True) == train(leader=False) == 4
