#!/usr/bin/env python
"""Makes the manifests of a corpus, as a recipe does when it is trained with --data_folder.

    python speechbrain_hparams/prepare.py librispeech LibriSpeech/ manifests/
    python speechbrain_hparams/prepare.py librispeech LibriSpeech/ manifests/ --train "[train-clean-100]"
    python speechbrain_hparams/prepare.py voicebank VoicebankDEMAND/ manifests/ --resample False

Options are those of `wavcube_plugins.speechbrain.corpora.prepare_*`. Train on the result with
`--manifests manifests/ --data_folder LibriSpeech/` and the same options, for instance
`--train_splits "[train-clean-100]"`.
"""

from __future__ import annotations

import inspect
import sys

try:
    from wavcube_plugins.speechbrain.corpora import CORPORA
except ImportError as error:
    sys.exit(f"prepare.py: error: {error}")
import yaml


def main(arguments: list[str]) -> int:
    usage = f"usage: prepare.py {{{','.join(CORPORA)}}} CORPUS_FOLDER MANIFEST_FOLDER [--OPTION VALUE ...]"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n{usage}")
        for name, function in CORPORA.items():
            print(f"\n{name}: {inspect.getdoc(function).splitlines()[0]}\n   {' '.join(options_of(function))}")
        return 0
    try:
        if len(arguments) < 3 or arguments[0] not in CORPORA or len(arguments) % 2 == 0:
            raise ValueError(usage)
        corpus, source, destination, *rest = arguments
        function, options = CORPORA[corpus], {}
        for key, value in zip(rest[::2], rest[1::2], strict=True):
            name = key.removeprefix("--")
            if name not in options_of(function):
                raise ValueError(f"{corpus} has no option {name!r}, only {', '.join(options_of(function))}")
            options[name] = yaml.safe_load(value)
        function(source, destination, **options)
    except (ValueError, OSError, TypeError, yaml.YAMLError) as error:
        print(f"prepare.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"wrote train.json, valid.json, test.json and what else there is to {destination}")
    return 0


def options_of(function) -> list[str]:
    """Return the names of the options of a corpus."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
