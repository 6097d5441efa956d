"""Exceptions that users may catch. Each message is one line that says what is wrong, what is allowed, and what to do.

Every exception that this package raises about its arguments or a user's files is a :class:`SegNeXtError`, or an
OSError, such as FileNotFoundError. Others are bugs.
"""


class SegNeXtError(Exception):
    """Base class. Each subclass is a ValueError or an OSError, too."""


class OptionError(SegNeXtError, ValueError):
    """An argument is invalid, or does not fit the model."""


class CheckpointError(SegNeXtError, ValueError):
    """A checkpoint is invalid or unexpected."""


class ImageError(SegNeXtError, ValueError):
    """An image cannot be read, or its shape, type or values are invalid."""


class ExportError(SegNeXtError, ValueError):
    """A model cannot be exported, a package is missing, or the exported graph's output differs from the model's."""


class HubError(SegNeXtError, OSError):
    """The Hugging Face Hub refused a request. The message gives the status and the Hub's reason."""


class DataSetError(SegNeXtError, ValueError):
    """Files of a data set are missing or invalid."""
