"""The code blocks of the README and of docs/ run as they stand.

A page's blocks run in order, in one folder: Python blocks share their variables, shell blocks their files. A block that
cannot run here is preceded by `<!-- skip: next "why" -->`, which is not rendered.
"""

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
from unittest import SkipTest

import pytest
import torch
from helpers.paths import ROOT
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from wavcube_plugins.audio import read_audio, write_audio
from wavcube_plugins.synthetic.bundled import bundled_speech

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = ("```python", "```bash")
WITH_CODE = [page for page in PAGES if any(start in page.read_text(encoding="utf-8") for start in CODE)]


def run_shell(example):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{example.path}, line {example.line}: exit code {done.returncode}\n{done.stdout}"


def parse(page):
    parsers = [PythonCodeBlockParser(), CodeBlockParser("bash", run_shell), SkipParser()]
    return Sybil(parsers=parsers, path=str(ROOT), encoding="utf-8").parse(page)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with what the pages take for granted: a clone's folders, the command, and some speech."""
    for name in ("benchmarks", "espnet_recipe", "s3prl_upstream", "speechbrain_hparams"):
        (tmp_path / name).symlink_to(ROOT / name)
    utterances = bundled_speech()[:3]
    write_audio(tmp_path / "speech.wav", read_audio(utterances[0].path))
    (tmp_path / "corpus").mkdir()
    for utterance in utterances:
        shutil.copy(utterance.path, tmp_path / "corpus")

    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("wavcube", "-m wavcube_plugins.cli"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_blocks_run(page, clone):
    for example in parse(page).examples():
        with contextlib.suppress(SkipTest):
            example.evaluate()


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_skipped_block_has_its_reason(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("<!-- skip"):
            assert line.startswith('<!-- skip: next "'), f"{page.name}, line {number + 1}: {line}"
            assert lines[number + 2].startswith(CODE), f"{page.name}, line {number + 1}: no code block follows"


def yaml_blocks(page):
    return re.findall(r"^```yaml\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_bench_file_of_the_docs_can_be_read(tmp_path):
    from wavcube_plugins.superb.bench_file import read_bench

    (block,) = yaml_blocks("docs/superb.md")
    (tmp_path / "bench.yaml").write_text(block.replace("~/s3prl", str(tmp_path)), encoding="utf-8")
    bench = read_bench(tmp_path / "bench.yaml")
    assert [task.name for task in bench.tasks] == ["pr", "asr", "sid", "asv"]
    assert [row.label for row in bench.rows] == ["WavCube", "Fbank"]


@pytest.mark.parametrize("page", ["README.md", "docs/speechbrain.md"])
def test_the_lobe_of_the_docs_can_be_built(page):
    from hyperpyyaml import load_hyperpyyaml

    (block,) = yaml_blocks(page)
    assert load_hyperpyyaml(block)["wavcube"](torch.randn(1, 16000)).shape == (1, 49, 32)
