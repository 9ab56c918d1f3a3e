"""The command line's start: read the arguments, carry the command out, tell what went wrong in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from attnad.cli.arguments import parse_arguments
from attnad.errors import AttnadError, SomeFailed, shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and carry it out; an error that a person can mend becomes one line.

    Returns the status: 0 all is done; 1 some of it, such as photographs of which a few could not be read; 2 nothing, as
    for a mistake in the arguments; 130 stopped by Ctrl-C.
    """
    try:
        parse_arguments(list(sys.argv[1:] if arguments is None else arguments))()
    except KeyboardInterrupt as stop:
        print(f"attnad: stopped; {str(stop) or 'run the same command again to go on'}", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that is read-only, a file that vanished
        what = shown(f"{error.filename}: {error.strerror}" if error.filename else error)
        print(f"attnad: {what}; mend that and run the same command again, what was saved is kept", file=sys.stderr)
        return 1
    except AttnadError as error:
        print(f"attnad: {error}", file=sys.stderr)
        return 1 if isinstance(error, SomeFailed) else 2
    except (MemoryError, RuntimeError) as error:
        import torch

        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise  # a mistake of the program
        reason = shown((str(error).splitlines() or ["no more"])[0])
        print(f"attnad: out of memory ({reason}); try a smaller --size or batch", file=sys.stderr)
        return 2
    return 0
