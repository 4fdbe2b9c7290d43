"""The `latentc` command: parses, runs one command, and turns errors into one line and an exit code.

Exit codes: 0, 1 for the user's input, 2 for usage, 3 for a parity bound that does not hold, 130 for Ctrl-C.
"""

import os
import sys
from collections.abc import Sequence

from latentc.arguments import parser
from latentc.errors import EXIT_INPUT, LatentcError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `latentc` with `arguments` (default: the process's own) and returns the exit code."""
    given = vars(parser().parse_args(arguments))
    command = given.pop("command")
    try:
        # Each command is a module of its own, imported when it is asked for: start-up is part of latency.
        if command == "sample":
            from latentc.commands import sample

            sample.run(sample.Options(**given))
        elif command == "build":
            from latentc.commands import build

            build.run(build.Options(**given))
        elif command == "inspect":
            from latentc.commands import inspect

            inspect.run(inspect.Options(**given))
        elif command == "verify":
            from latentc.commands import verify

            verify.run(verify.Options(**given))
        else:
            from latentc.commands import bench

            bench.run(bench.Options(**given))
        sys.stdout.flush()
    except LatentcError as error:
        return _failed(str(error), error.exit_code)
    except MemoryError:
        return _failed("not enough memory for this request; try a smaller -b, or --tile", EXIT_INPUT)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would flush stdout once more at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    return 0


def _failed(message: str, exit_code: int) -> int:
    sys.stdout.flush()
    print(f"latentc: error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
