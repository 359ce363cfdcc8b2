"""The command line. Options stand in cli/parser.py, what each command does in cli/commands.py.

    python -m pfiles check --data PATH --preset NAME
    python -m pfiles demo [--out DIR]
    python -m pfiles run --data PATH --preset NAME --clusters 14 --clustering classifier --out DIR
    python -m pfiles clusters --clusters 10-16 --seeds 3 --data PATH --preset NAME --out DIR
    torchrun --nproc-per-node 4 -m pfiles cells part_1_training --data PATH --out DIR
    python -m pfiles watch --out DIR
    python -m pfiles status --run DIR
    python -m pfiles draw --from starter --cluster 3 --number 64 --out DIR
    python -m pfiles draw --from RUN --cluster keratin --number 64 --out DIR
    python -m pfiles tile SLIDE_OR_FOLDER ... --out DIR
    python -m pfiles map --slide FILE --run DIR
    python -m pfiles evaluate --real DIR --generated DIR
    python -m pfiles export --generated DIR --data PATH --out DIR
    python -m pfiles share --run DIR --out FOLDER --card card.toml
    python -m pfiles paper --archive DIR_OR_ZIP ... --out DIR
    python -m pfiles pack --run DIR --out run.zip
    python -m pfiles reproduce run.zip --data PATH --out DIR

`check` says whether this machine is ready for a run and how long the run will take. `demo` and `run` run the notebooks
in order, `clusters` those that help to choose k, `cells` one of them in this process; `watch` shows a running training,
`status` the files of a run and whether they are stale.
`draw` draws tiles with trained networks, such as the small ones that come with the project. `tile` cuts slides into
tiles, `map` shows trained clusters on slides that were not trained on. `evaluate` compares two folders of images,
`export` copies the generated images that repeat no training tile, `share` writes a run's generator for others.
`paper` puts the published files in their places and makes what the paper shows again. `pack`
writes a run as one zip, and `reproduce` makes it again and says what is equal.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from pfiles.cli.parser import parse
from pfiles.errors import InputError, TerminatedError


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 done, 1 a notebook failed or the disk took no file, 2 an argument or an input is wrong, 3 slides were left
    out, 130 or 143 stopped by Ctrl-C or SIGTERM, 141 nobody reads the output any more.
    """
    args, handler = None, signal.signal(signal.SIGTERM, _end)
    try:
        args = parse(arguments)
        status = _function_of(args.command)(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # such as `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written at exit
        return 128 + signal.SIGPIPE
    except (InputError, OSError) as error:
        if args is not None and args.debug:
            raise
        is_input = isinstance(error, InputError)
        sentence = error if is_input else f"{error}: mend that and run the same command again to go on."
        print(f"error: {sentence}", file=sys.stderr)
        return 2 if is_input else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, handler)


def _end(number: int, frame: FrameType | None) -> None:
    """End the command as an exception does: its kernel ends too, and what it wrote for itself alone is removed."""
    raise TerminatedError("Stopped: run the same command again to go on.")


def _function_of(command: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command. Commands that run notebooks load no torch, and `--help` loads none of these."""
    if command in ("demo", "run", "clusters"):
        from pfiles.cli import notebooks

        return notebooks.choose_k if command == "clusters" else notebooks.run
    from pfiles.cli.commands import COMMANDS

    return COMMANDS[command]


if __name__ == "__main__":
    sys.exit(main())
