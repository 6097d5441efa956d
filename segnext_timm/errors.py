"""Exceptions that users may catch. Each message is one line that says what is wrong and what to do."""


class CheckpointError(ValueError):
    """A checkpoint is invalid or unexpected."""


class DataSetError(ValueError):
    """Files of a data set are missing or invalid."""


class ImageError(ValueError):
    """An image cannot be read, or its shape, type or values are invalid."""


class HubError(RuntimeError):
    """The Hugging Face Hub refused a request. The message gives the status and the Hub's reason."""


class ExportError(RuntimeError):
    """A model cannot be exported, or the exported graph's output differs from the model's."""
