"""What a user can get wrong. Any other exception is a bug and keeps its traceback.

A message is one sentence: place, expected, got, remedy.
"""


class HkmapError(Exception):
    """The data or the run failed; the command line prints the sentence and exits with 1."""


class RecordError(HkmapError):
    """A record, or the stream of records, is not what the command expects."""


class ChoiceError(HkmapError):
    """A name is not in its table of choices."""


class UpstreamError(RecordError):
    """The stage before failed with the message in the only argument; skipping records does not help.

    As a text it is short: the stage before has printed its sentence whole.
    """

    def __str__(self) -> str:
        sentence = str(self.args[0])
        return f"the stage before failed: {sentence if len(sentence) <= 60 else f'{sentence[:57]}...'}"


class SourceError(HkmapError):
    """A data set on disk does not have the layout that its source expects."""


class ImageError(HkmapError):
    """An image or a mask cannot be decoded, or does not belong to its record."""


class MapError(HkmapError):
    """An array is not a map: (height, width), float32, finite, in [0, 1]."""


class ShardError(HkmapError):
    """An HDF5 shard is damaged, from another program, or has invalid contents."""


class RunError(HkmapError):
    """A run folder, a checkpoint or a training set-up does not match."""


class WorkerError(HkmapError):
    """The cluster cannot do the work."""


class OutputError(HkmapError):
    """An output cannot be written to the requested place."""
