"""Start the command line: `attnad`, or `python -m attnad`."""

import io
import os
import sys


def main() -> int:
    """Run `attnad.cli.main`, with PyTorch's threads sleeping while they wait for each other.

    Spinning, their default, makes training many times slower as soon as another program wants a core. The setting is
    read when PyTorch loads, so it comes before that import; one that the user made stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no text
    try:
        from attnad.cli import main as cli
    except KeyboardInterrupt:  # it takes seconds
        print("attnad: stopped; nothing was begun", file=sys.stderr)
        return 130
    return cli()


if __name__ == "__main__":
    sys.exit(main())
