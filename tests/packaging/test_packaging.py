"""What a wheel and a source distribution contain, built offline."""

import re
import subprocess
import sys
import zipfile
from email import message_from_string

import pytest
from helpers.paths import ROOT
from helpers.s3prl_environment import clean_environment, source_tree, wheel

pytestmark = pytest.mark.integration


def source_files():
    """Return what a wheel must hold, as paths inside it, mapped to the files of the source tree."""
    tree = source_tree()
    inside = {path.relative_to(tree): path for path in (tree / "wavcube_plugins").rglob("*") if path.is_file()}
    folder = tree / "s3prl_upstream"
    target = "wavcube_plugins/s3prl/upstream_folder"
    inside |= {target / path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path for name, path in inside.items() if "__pycache__" not in name.parts}


def assert_complete(path):
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        files = source_files()
        assert names == {*files, "wavcube_s3prl_hook.pth"}
        for name, source in files.items():
            assert archive.read(name) == source.read_bytes(), name


def test_wheel_holds_every_file_of_the_package_and_the_s3prl_folder():
    assert_complete(wheel())
    assert "wavcube_plugins/py.typed" in source_files()
    assert "wavcube_plugins/assets/nano/model.safetensors" in source_files()


def test_source_distribution_builds_the_same_wheel(tmp_path):
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    options = {"env": clean_environment(), "capture_output": True, "text": True}
    subprocess.run([sys.executable, "-c", program], cwd=source_tree(), check=True, **options)
    (archive,) = tmp_path.glob("*.tar.gz")
    build = ["pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(archive)]
    done = subprocess.run([sys.executable, "-m", *build], **options)
    assert done.returncode == 0, done.stderr
    assert_complete(next(tmp_path.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata():
    with zipfile.ZipFile(wheel()) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def test_metadata_name_the_version_the_licence_and_the_readme(metadata):
    assert metadata["Version"] == (ROOT / "wavcube_plugins" / "version.txt").read_text().strip()
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_extra_all_brings_every_toolkit_and_helper(metadata):
    extras = set(metadata.get_all("Provides-Extra"))
    (everything,) = (line for line in metadata.get_all("Requires-Dist") if re.search("extra == .all.", line))
    inner = everything.partition("[")[2].partition("]")[0].split(",")
    assert set(inner) == extras - {"all", "dev", "docs"}
