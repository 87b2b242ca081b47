"""What goes wrong, in one vocabulary: error classes and the exit codes of every command."""

import errno

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# Numbers of an OSError that is about the name of a file, as opposed to the disk, which every other file would meet too.
NAME_FAULTS = frozenset(
    (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)

# Numbers of an OSError of a disk that takes no more.
DISK_FAULTS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))


class InputError(ValueError):
    """A file, an option or an argument cannot be used.

    The message is one sentence that names the culprit and says what to do; commands print it and exit with `BAD_INPUT`.
    """
