"""Every exception of this package that users may catch. Each message is one line: what is wrong, and what to do."""


class CheckpointError(ValueError):
    """A checkpoint is invalid or unexpected. The one-line message names it, says what it is, and what to do."""


class ImageError(ValueError):
    """An image that cannot be read, or whose shape, type or values do not fit."""


class HubError(RuntimeError):
    """The Hugging Face Hub refused a request. The message gives the status and the Hub's reason."""


class ExportError(RuntimeError):
    """A model cannot be exported, or the exported graph does not compute what the model computes."""
