"""`wavcube superb`: the tasks of SUPERB and SUPERB-SG through s3prl's own runner, from one file that describes them.

`tasks` is the table of tasks, `corpora` what each needs on disk, `bench` the file and the command lines, `running` the
processes, `results` what is read from them, `scoring` the rules s3prl leaves to other tools, `mini` a small synthesised
set. `workspace` is the private copy of s3prl they run in; the demo uses it too.
"""
