"""`wavcube superb`: the tasks of SUPERB and SUPERB-SG through s3prl's own runner, as one file describes them.

`tasks` is the table of tasks. `bench_file` reads the file into a `bench` of `rows`; `corpora` checks what each task
needs on disk; `runs` are the trainings and their command lines. `running` runs them, each as a `job` with the `steps`
of its task; `changes` and `caches` keep runs apart. `results`, `picture`, `score`, `scoring` and `conversion` make the
numbers. `mini` is a small synthesised set. `workspace` is the private copy of s3prl that all of it runs in; the demo
uses it too.
"""
