"""WavCube for s3prl, to be copied to `s3prl/upstream/wavcube`; see README.md."""
