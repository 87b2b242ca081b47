"""Speech corpora as they are published: one module per corpus reads its layout once and yields plain records.

>>> from wavcube_plugins.data.corpora import librispeech
>>> for record in librispeech.read("/corpora/LibriSpeech", ["dev-clean"]):
...     print(record.id, record.path, record.speaker, record.text)

The modules know no toolkit and no output format. `wavcube_plugins.data.kaldi` writes Kaldi folders,
`wavcube_plugins.speechbrain.corpora` SpeechBrain's manifests, and `wavcube_plugins.superb.corpora` what s3prl needs.

To add a corpus, add one file here with a function

    def read(root, ...) -> Iterator[Record]:

that checks the layout when it is called and raises one `CorpusError` naming what is missing and what was expected
(`layout.expect_folder` and `expect_file` do both), then walks the corpus in sorted order and yields one `Record` per
recording. Texts and labels are those of the corpus; it is for the writers to normalise them. Audio files need not be
opened: whoever writes a toolkit's format looks at their headers, and names a file that is missing or broken. A new
reader gets a test in tests/data/test_corpora.py that builds a tiny corpus of its layout. To train on the corpus, add a
function of a few lines to the adapter of the toolkit, such as `prepare_librispeech` for SpeechBrain.
"""

from wavcube_plugins.data.corpora.layout import CorpusError, Record

__all__ = ["CorpusError", "Record"]
