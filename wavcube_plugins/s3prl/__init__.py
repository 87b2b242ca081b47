"""WavCube as an upstream of s3prl.

`names` lists the entries, `hubconf` has them and `expert` is the upstream (with `options` and `sources`). s3prl finds
them through `hook`, on top of `imports`, or through a folder; `install` sets either up. `run` starts an s3prl script
with `shims` and `stand_ins` for what is missing, in several processes with `ranks`. Importing this package imports
neither torch nor s3prl.
"""
