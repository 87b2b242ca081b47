"""Packaging of wavcube_plugins: dependencies, extras, and the file that makes s3prl find us."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = (ROOT / "wavcube_plugins" / "version.txt").read_text().strip()
HOOK = "wavcube_s3prl_hook.pth"

EXTRAS = {
    "s3prl": [
        "s3prl>=0.4.17",
        "huggingface_hub<1",
        "transformers<5",
        "tensorboardX",
        "librosa",
        "pandas",
        "matplotlib",
    ],
    "espnet": ["espnet>=202511", "setuptools<74", "sentencepiece", "matplotlib", "phonemizer", "transformers<5", "six"],
    "speechbrain": ["speechbrain>=1.1.1", "sentencepiece", "tensorboard"],
    "superb": ["h5py", "pesq", "pystoi", "pyworld"],
    "eval": ["pystoi", "pesq", "matplotlib"],
    "synthesis": ["espeakng-loader"],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
EXTRAS["dev"] = ["pytest", "pytest-timeout", "ruff"]


class BuildWithHook(build_py):
    """Put the s3prl hook file beside the package, so that a wheel installs it into site-packages."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(str(ROOT / "wavcube_plugins" / "s3prl" / HOOK), str(Path(self.build_lib) / HOOK))


setup(
    name="wavcube-plugins",
    version=VERSION,
    description="WavCube, one compact continuous representation of speech, for s3prl, ESPnet and SpeechBrain",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["wavcube_plugins*"]), "wavcube_plugins.s3prl.upstream_folder"],
    package_dir={"wavcube_plugins.s3prl.upstream_folder": "s3prl_upstream"},
    package_data={
        "wavcube_plugins": ["version.txt", "assets/**/*"],
        "wavcube_plugins.s3prl": ["*.pth"],
        "wavcube_plugins.superb": ["corpus_modules/*.py"],
        "wavcube_plugins.s3prl.upstream_folder": ["*.md", "requirements.txt", "superb/*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "torchaudio>=2.6",
        "numpy",
        "safetensors",
        "soundfile",
        "tqdm",
        "huggingface_hub",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["wavcube = wavcube_plugins.cli:main"]},
    cmdclass={"build_py": BuildWithHook},
)
