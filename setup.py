"""The build step that pyproject.toml cannot express: what a wheel holds besides the package itself."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
HOOK = "wavcube_s3prl_hook.pth"


class BuildWithHook(build_py):
    """Add s3prl's hook, which a wheel installs into site-packages, and the folder that can be copied into s3prl."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        library = Path(self.build_lib)
        self.copy_file(str(ROOT / "wavcube_plugins" / "s3prl" / HOOK), str(library / HOOK))
        folder = ROOT / "s3prl_upstream"
        for source in sorted(folder.rglob("*")):
            if source.is_file() and source.suffix in {".py", ".md", ".txt", ".yaml"}:
                target = library / "wavcube_plugins" / "s3prl" / "upstream_folder" / source.relative_to(folder)
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))


setup(cmdclass={"build_py": BuildWithHook})
