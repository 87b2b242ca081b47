"""WavCube as an upstream of s3prl.

`hubconf` has the entries and `expert` the upstream; `hook` makes s3prl find them and `install` sets that up; `run`
starts an s3prl script with `shims` for libraries that have moved on. Importing this package imports no torch, no s3prl.
"""
