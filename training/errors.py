"""Every error that training raises on purpose; the message is for the person at the command line."""


class TrainingError(Exception):
    """Base of the tree."""


class DataError(TrainingError):
    """The data can't be trained on; the message names the file and what is wrong with it."""


class ConversionUnavailable(TrainingError):
    """skl2onnx and onnx, of the training group, are not installed."""
