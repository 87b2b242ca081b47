"""The ways in which s3prl comes to know WavCube, and how each leaves again."""

import os
import runpy
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchaudio
from helpers.s3prl_environment import (
    ROOT,
    Environment,
    clean_environment,
    installed,
    scratch,
    source_tree,
    wheel,
)

from wavcube_plugins.s3prl import folder, hook, hubconf, install
from wavcube_plugins.s3prl.folder import HUB_IMPORT, HUB_LINE, STAMP_NAME
from wavcube_plugins.s3prl.hook_file import HOOK_NAME
from wavcube_plugins.s3prl.install import InstallError
from wavcube_plugins.s3prl.names import ENTRIES

pytestmark = pytest.mark.integration

FOLDER_FILES = {"README.md", "__init__.py", "expert.py", "hubconf.py", "requirements.txt"}
LIST_ENTRIES = "import s3prl.hub as hub; print('ENTRIES', *[n for n in hub.options() if 'wavcube' in n])"


def entries(output: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith("ENTRIES")).split()[1:]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


# The hook -------------------------------------------------------------------------------------------------------------


def test_wheel_brings_the_hook_and_the_folder():
    names = set(zipfile.ZipFile(wheel()).namelist())
    assert HOOK_NAME in names
    assert {f"wavcube_plugins/s3prl/upstream_folder/{name}" for name in FOLDER_FILES} <= names


def test_hook_of_the_wheel_registers_all_entries():
    program = """
import importlib, pickle, sys
loaded = [name for name in sys.modules if name.startswith(("wavcube", "torch"))]
assert not loaded, loaded  # nothing of ours runs before s3prl.hub is imported
import s3prl.hub as hub
assert "wavcube_plugins.s3prl.expert" not in sys.modules
print("ENTRIES", *[name for name in hub.options() if "wavcube" in name])
print("ONLY", *[name for name in hub.options(only_registered_ckpt=True) if "wavcube" in name])
assert "def options" in hub.__spec__.loader.get_source("s3prl.hub")
del hub.wavcube
assert callable(importlib.reload(hub).wavcube)
assert pickle.loads(pickle.dumps(hub.wavcube_url)) is hub.wavcube_url

import torch
from s3prl.nn import S3PRLUpstream
assert set(S3PRLUpstream.available_names()) > {"wavcube", "wavlm"}
upstream = S3PRLUpstream("wavcube", "nano")
states, lengths = upstream(torch.randn(2, 9000), torch.tensor([9000, 4000]))
print("SHAPES", len(states), *states[0].shape, *lengths[0].tolist())
"""
    output = installed().run("-c", program)
    assert entries(output) == sorted(ENTRIES)
    assert "ONLY wavcube wavcube_layers wavcube_pro" in output
    assert "SHAPES 1 2 29 32 29 13" in output


def test_switched_off_hook_adds_nothing_and_registering_adds_entries_alone():
    program = """
import s3prl.hub as hub
without = set(vars(hub))
from wavcube_plugins.s3prl.hook import register
register()
print("NAMES", *[name for name in without if "wavcube" in name])
print("ENTRIES", *sorted(set(vars(hub)) - without))
"""
    output = installed().run("-c", program, WAVCUBE_S3PRL_HOOK="0")
    assert "NAMES\n" in output
    assert entries(output) == sorted(ENTRIES)


def test_hook_warns_and_never_raises(monkeypatch):
    hub = ModuleType("s3prl.hub")
    broken = ModuleType("wavcube_plugins.s3prl.hubconf")
    broken.__all__ = ["wavcube"]
    monkeypatch.setattr("wavcube_plugins.s3prl.hubconf", broken)
    with pytest.warns(UserWarning, match="could not add its upstreams to s3prl"):
        hook.add_entries(hub)


def test_hook_takes_no_name_that_is_there_already():
    hub = ModuleType("s3prl.hub")
    hub.wavcube = "somebody else's"
    hook.add_entries(hub)
    assert hub.wavcube == "somebody else's"
    assert hub.wavcube_pro is hubconf.wavcube_pro


# Whether this process may read an `argparse.Namespace` from a checkpoint, and whether anything else.
SAVED_ARGUMENTS = """
import argparse, torch
import s3prl.hub as hub
class Foreign: pass
for content in (argparse.Namespace(upstream="wavcube"), Foreign()):
    torch.save({"Args": content}, "states.ckpt")
    try:
        torch.load("states.ckpt")
        print("READ", type(content).__name__)
    except Exception as error:
        print("REFUSED", type(content).__name__)
"""


def test_saved_arguments_are_read_in_s3prls_runner_and_refused_elsewhere(tmp_path):
    """torch's list of safe classes grows only in a process that reads s3prl's checkpoints."""
    for name, first in (("run_downstream.py", "READ Namespace"), ("other.py", "REFUSED Namespace")):
        (tmp_path / name).write_text(SAVED_ARGUMENTS)
        assert [first, "REFUSED Foreign"] == said(installed().run(name, cwd=tmp_path), "READ", "REFUSED")
    wrapper = ("-m", "wavcube_plugins.s3prl.run", "other.py")
    assert "READ Namespace" in installed().run(*wrapper, cwd=tmp_path, WAVCUBE_S3PRL_HOOK="0")


def said(output: str, *words: str) -> list[str]:
    """Return the lines of an output that begin with one of these words."""
    return [line for line in output.splitlines() if line.startswith(words)]


def test_a_venv_has_the_hook_once():
    """`site` reads the `.pth` files of a virtual environment twice."""
    program = "import sys; print(sum('s3prl' in getattr(one, '__name__', '') for one in sys.meta_path))"
    assert installed().run("-c", program).strip() == "1"


@pytest.mark.parametrize(
    ("value", "found"), [("0", False), ("False", False), ("no", False), ("OFF", False), ("", False), ("1", True)]
)
def test_the_switch_takes_the_usual_words(value, found, monkeypatch):
    monkeypatch.setenv("WAVCUBE_S3PRL_HOOK", value)
    assert hook.enabled() is found


def test_what_torchaudio_dropped_is_there_when_s3prl_is_imported(tmp_path):
    """torchaudio 2.9 has no set_audio_backend, without which s3prl's hub cannot be imported."""
    (tmp_path / "newer.py").write_text(
        "import torchaudio\n"
        "for name in ('set_audio_backend', 'info', 'sox_effects'):\n"
        "    hasattr(torchaudio, name) and delattr(torchaudio, name)\n"
        "import s3prl.hub as hub\n"
        "torchaudio.set_audio_backend('sox_io')\n"
        "from torchaudio.sox_effects import apply_effects_file\n"
        "print('READY', callable(hub.wavcube), callable(torchaudio.info))\n"
    )
    assert "READY True True" in installed().run("newer.py", cwd=tmp_path)
    installed().run("newer.py", cwd=tmp_path, fails=True, WAVCUBE_S3PRL_HOOK="off")


def test_a_torchaudio_that_s3prl_can_use_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(torchaudio, "set_audio_backend", print, raising=False)
    before = dict(vars(torchaudio))
    hook.restore_torchaudio()
    assert vars(torchaudio) == before


def test_pip_removes_the_hook_of_a_wheel_and_leaves_s3prl_as_it_was():
    environment = Environment(scratch() / "removed")
    package = environment.add_s3prl()
    before = contents(environment.site)
    environment.pip("install", "--no-deps", wheel())
    assert (environment.site / HOOK_NAME).is_file()
    environment.pip("uninstall", "--yes", "wavcube-plugins")
    assert contents(environment.site) == before
    # A hook file that somehow stays behind alone is silent.
    shutil.copy(ROOT / "wavcube_plugins" / "s3prl" / HOOK_NAME, environment.site)
    assert package.is_dir()
    output = environment.run("-W", "default", "-c", "import sys; import s3prl.hub; print('wavcube' in dir(s3prl.hub))")
    assert output.splitlines()[-1] == "False"
    assert environment.run("-c", "pass") == ""


def test_editable_install_gets_the_hook_by_command_and_pip_removes_it():
    environment = Environment(scratch() / "editable")
    environment.add_s3prl()
    before = contents(environment.site)
    environment.pip("install", "--no-deps", "--no-build-isolation", "--editable", source_tree())
    records = next(environment.site.glob("wavcube_plugins-*.dist-info")) / "RECORD"
    without = records.read_bytes()
    program = "from wavcube_plugins.s3prl import install; print(install.{})"

    assert "the hook is installed" in environment.run("-c", program.format("install_hook()"))
    assert (environment.site / HOOK_NAME).read_bytes() == (ROOT / "wavcube_plugins/s3prl" / HOOK_NAME).read_bytes()
    with_hook = records.read_bytes()
    assert with_hook != without
    assert "in place already" in environment.run("-c", program.format("install_hook()"))
    assert records.read_bytes() == with_hook
    assert entries(environment.run("-c", LIST_ENTRIES)) == sorted(ENTRIES)

    # A damaged hook is written anew and listed once.
    (environment.site / HOOK_NAME).write_text("")
    environment.run("-c", program.format("install_hook()"))
    assert records.read_bytes() == with_hook

    assert "removed the hook" in environment.run("-c", program.format("uninstall()"))
    assert records.read_bytes() == without and not (environment.site / HOOK_NAME).exists()
    assert "nothing to remove" in environment.run("-c", program.format("uninstall()"))

    # The folder is found in an editable install too, though it lies elsewhere in the source tree.
    environment.run("-c", program.format("install_folder()"))
    assert {path.name for path in (environment.site / "s3prl/upstream/wavcube").glob("[!.]*.*")} == FOLDER_FILES
    environment.run("-c", program.format("uninstall()"))

    environment.run("-c", program.format("install_hook()"))
    environment.pip("uninstall", "--yes", "wavcube-plugins")
    assert contents(environment.site) == before


def test_hook_is_refused_where_python_would_not_read_it(tmp_path):
    program = "from wavcube_plugins.s3prl.install import install_hook; install_hook()"
    bare = Environment(tmp_path / "bare", parent=False)
    output = bare.run("-c", program, fails=True, PYTHONPATH=str(source_tree()))
    assert "InstallError" in output and "not installed in this Python" in output

    target = tmp_path / "target"
    bare.pip("install", "--no-deps", "--target", target, wheel())
    output = bare.run("-c", program, fails=True, PYTHONPATH=str(target))
    assert "where Python reads no .pth files" in output and "wavcube_plugins.s3prl.run" in output


# The folder -----------------------------------------------------------------------------------------------------------

HUB = """from s3prl.upstream.apc.hubconf import *
from s3prl.upstream.wav2vec.hubconf import *
from s3prl.upstream.wavlm.hubconf import *


def options(only_registered_ckpt: bool = False):
    return []
"""


@pytest.fixture
def package(tmp_path):
    """A clone of s3prl, as far as the installer looks at it."""
    package = tmp_path / "clone" / "s3prl"
    (package / "upstream" / "apc").mkdir(parents=True)
    (package / "hub.py").write_bytes(HUB.encode())
    (package / "hub.py").chmod(0o640)
    return package


def test_folder_way_works_without_the_hook_and_without_the_package():
    environment = Environment(scratch() / "folder")
    package = environment.add_s3prl()
    before = contents(package)
    environment.pip("install", "--no-deps", wheel())
    command = "from wavcube_plugins.s3prl.install import {0}; print({0}())"
    assert "the upstream folder is installed" in environment.run("-c", command.format("install_folder"))

    program = """
import torch, s3prl.hub as hub
print("ENTRIES", *[name for name in hub.options() if "wavcube" in name])
from s3prl.upstream.wavcube.expert import UpstreamExpert
for upstream in (hub.wavcube(ckpt="nano", model_config=None, refresh=False), UpstreamExpert("nano", None, False)):
    print(upstream([torch.randn(16000)])["hidden_states"][0].shape)
"""
    output = environment.run("-c", program, WAVCUBE_S3PRL_HOOK="0")
    assert sorted(entries(output)) == sorted(ENTRIES)
    assert output.count("torch.Size([1, 50, 32])") == 2
    script = environment.site.parent / "run_downstream.py"
    script.write_text(SAVED_ARGUMENTS)
    output = environment.run(script, WAVCUBE_S3PRL_HOOK="0")
    assert said(output, "READ", "REFUSED") == ["READ Namespace", "REFUSED Foreign"]

    environment.pip("uninstall", "--yes", "wavcube-plugins")
    output = environment.run("-c", f"{LIST_ENTRIES}; hub.wavcube(ckpt='nano')", fails=True)
    assert sorted(entries(output)) == sorted(ENTRIES)
    assert "ImportError: -u wavcube needs the package wavcube_plugins, from a clone of it: pip install" in output

    environment.pip("install", "--no-deps", wheel())
    environment.run("-c", command.format("uninstall"))
    assert contents(package) == before


def test_folder_is_installed_again_and_again_and_removed_byte_for_byte(package):
    hub = package / "hub.py"
    shared = package.parent / "as_in_the_cache_of_uv.py"
    os.link(hub, shared)
    install.install_folder(package.parent)  # a clone: the package lies in it
    assert hub.read_bytes() == HUB.encode().replace(
        b"from s3prl.upstream.wavlm", HUB_LINE + b"\nfrom s3prl.upstream.wavlm"
    )
    assert shared.read_text() == HUB and hub.stat().st_mode & 0o777 == 0o640
    installed_once = contents(package)
    assert {Path(name).name for name in installed_once if "upstream" in name} == {*FOLDER_FILES, STAMP_NAME}

    (package / "upstream/wavcube/expert.py").write_text("an older version")
    install.install_folder(package)
    assert contents(package) == installed_once

    assert len(install.uninstall(package)) >= 2
    assert contents(package) == {"hub.py": HUB.encode()}
    assert not (package / "upstream/wavcube").exists()
    assert hub.stat().st_mode & 0o777 == 0o640
    assert not any("hub.py" in sentence for sentence in install.uninstall(package))


def test_folder_keeps_line_ends_and_later_edits_of_hub(package):
    text = HUB.replace("\n", "\r\n").encode()
    (package / "hub.py").write_bytes(text)
    install.install_folder(package)
    edited = (package / "hub.py").read_bytes()
    assert edited.count(b"\r\n") == edited.count(b"\n") == HUB.count("\n") + 1
    (package / "hub.py").write_bytes(edited + b"# a later edit\r\n")
    install.uninstall(package)
    assert (package / "hub.py").read_bytes() == text + b"# a later edit\r\n"


def test_foreign_folder_is_never_touched(package):
    foreign = package / "upstream" / "wavcube"
    foreign.mkdir()
    (foreign / "expert.py").write_text("mine")
    before = contents(package)
    with pytest.raises(InstallError, match=r"upstream/wavcube: exists and was not put there"):
        install.install_folder(package)
    install.uninstall(package)
    assert contents(package) == before


def test_files_of_others_in_our_folder_stay(package):
    install.install_folder(package)
    note = package / "upstream/wavcube/note.txt"
    note.write_text("mine")
    assert any("stay" in sentence for sentence in install.uninstall(package))
    assert contents(package) == {"hub.py": HUB.encode(), "upstream/wavcube/note.txt": b"mine"}


def test_line_added_by_hand_stops_the_removal(package):
    install.install_folder(package)
    by_hand = HUB.encode() + HUB_IMPORT + b"\n"
    (package / "hub.py").write_bytes(by_hand)
    install.install_folder(package)  # imported already, so no second line
    assert (package / "hub.py").read_bytes() == by_hand
    before = contents(package)
    with pytest.raises(InstallError, match="added by hand; remove it first"):
        install.uninstall(package)
    assert contents(package) == before


@pytest.mark.parametrize("case", ["no_such_folder", "no_imports"])
def test_folder_is_refused_where_no_s3prl_is(package, case):
    if case == "no_such_folder":
        with pytest.raises(InstallError, match="no s3prl there"):
            install.install_folder(package / "nowhere")
    else:
        (package / "hub.py").write_text("nothing\n")
        with pytest.raises(InstallError, match="no line that imports an upstream"):
            install.install_folder(package)
        assert not (package / "upstream" / "wavcube").exists()


def test_missing_s3prl_is_one_sentence(monkeypatch):
    monkeypatch.setattr(folder, "find_spec", lambda name: None)
    with pytest.raises(InstallError, match=r"s3prl is not installed in this Python; .* install '\.\[s3prl\]'"):
        install.install_folder()


# torch.hub and the light package --------------------------------------------------------------------------------------


def test_torch_hub_loads_the_folder():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upstream = torch.hub.load(str(ROOT / "s3prl_upstream"), "wavcube", source="local", ckpt="nano")
        layers = torch.hub.load(str(ROOT / "s3prl_upstream"), "wavcube_layers", source="local", ckpt="nano")
    wav = torch.randn(16000)
    assert upstream([wav])["hidden_states"][0].shape == (1, 50, 32)
    assert len(layers([wav])["hidden_states"]) == 7


def test_importing_the_adapter_is_light():
    program = (
        "import sys; from wavcube_plugins.s3prl import hook, hubconf, install, run; "
        "print('torch' in sys.modules, 's3prl' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=clean_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr


def test_hubconf_has_entries_and_nothing_else():
    assert sorted(hubconf.__all__) == sorted(ENTRIES)
    assert {name for name in vars(hubconf) if not name.startswith("_")} == set(ENTRIES)


def test_the_folder_offers_the_same_entries_with_and_without_the_package(monkeypatch):
    path = ROOT / "s3prl_upstream" / "hubconf.py"
    assert sorted(runpy.run_path(str(path))["__all__"]) == ENTRIES
    monkeypatch.setitem(sys.modules, "wavcube_plugins.s3prl", None)
    without = runpy.run_path(str(path))
    assert all(callable(without[name]) for name in ENTRIES)
    with pytest.raises(ImportError, match=r"-u wavcube_pro needs the package wavcube_plugins"):
        without["wavcube_pro"]()
