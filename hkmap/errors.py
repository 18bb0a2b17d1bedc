"""What a user can get wrong. Everything else that is raised is a bug and keeps its traceback.

A message is one sentence with the place, what was expected, what was found and the remedy.
"""


class HkmapError(Exception):
    """The data or the run failed; the command line prints the sentence and exits with 1."""


class RecordError(HkmapError):
    """A record, or the stream of records, is not what the command reads."""


class ChoiceError(HkmapError):
    """A choice by name is in no row of its table."""


class UpstreamError(RecordError):
    """The stage before failed and said so, in its only argument; skipping records cannot mend that."""

    def __str__(self) -> str:
        return f"the stage before failed: {self.args[0]}"


class SourceError(HkmapError):
    """A data set on disk is not laid out as its source expects."""


class ImageError(HkmapError):
    """An image or a mask cannot be decoded, or does not belong to its record."""


class MapError(HkmapError):
    """An array is not a map: (height, width), float32, finite, in [0, 1]."""


class ShardError(HkmapError):
    """An HDF5 shard is damaged, foreign, or holds what it should not."""


class RunError(HkmapError):
    """A run folder, a checkpoint or a training set-up does not fit."""


class WorkerError(HkmapError):
    """The cluster that should do the work cannot."""


class OutputError(HkmapError):
    """An output cannot be written where it was asked for."""
