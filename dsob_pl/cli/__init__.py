"""The command line: dispatch to the subcommands, and one line on stderr for every error that is not a bug."""

from __future__ import annotations

import errno
import gc
import os
import select
import sys
import traceback
from collections.abc import Sequence

from dsob_pl.errors import OutOfRoom, RunFailed, UsageError, nearest
from dsob_pl.files import NO_ROOM

USAGE = """\
usage: python -m dsob_pl COMMAND [options]

commands:
  fit       train:               python -m dsob_pl fit --config conf/walker.yaml
  validate  evaluate a checkpoint with the settings of its run:
                                 python -m dsob_pl validate --ckpt_path PATH
  test      the same as validate, under Lightning's other name
  evaluate  return statistics of a run's policy, a video of it:
                                 python -m dsob_pl evaluate --run RUN_ID --video out.mp4
  explain   draw one episode with the law of the return that the agent predicted at every step:
                                 python -m dsob_pl explain --run RUN_ID --episode SEED
  sweep     run every cell of a suite, each once:
                                 python -m dsob_pl sweep --config conf/suite/quick.yaml
  report    compare the methods of a suite, with intervals:
                                 python -m dsob_pl report --suite NAME --out DIR
  tracking  write to MLflow what a run has kept while MLflow was not there:
                                 python -m dsob_pl tracking replay RUN_DIR
  doctor    look at what a run needs, and say what to do where it is not there:
                                 python -m dsob_pl doctor --config conf/walker.yaml

COMMAND --help lists a command's options. Several --config files merge from left to right; any value can be
overridden, as in --trainer.max_steps=1000, and --print_config shows the result without running it.
Exit codes: 0 done, 1 doctor found a problem, 2 bad input, 3 the run failed, 4 out of memory or disk, 130 interrupted,
143 terminated.
Set DSOB_PL_TRACEBACK=1 to see where an error came from."""

TRAINER_COMMANDS = ("fit", "validate", "test")
COMMANDS = (*TRAINER_COMMANDS, "evaluate", "explain", "sweep", "report", "tracking", "doctor")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # no file can be called so


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; see ``USAGE``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # whether a reader is still there shows now, and not when Python ends
        return code
    except UsageError as error:
        return _fail(2, str(error))
    except OutOfRoom as error:
        return _fail(4, str(error))
    except RunFailed as error:
        return _fail(3, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:
        if _reader_left():
            return 141  # as a shell reports a process that SIGPIPE ended
        raise
    except OSError as error:
        if error.errno in _READ_ONLY:
            return _fail(2, f"cannot write '{error.filename}': {(error.strerror or '').lower()}")
        if error.errno in _NO_NAME:
            name = str(error.filename or "a path")
            shown = name if len(name) <= 60 else f"{name[:60]}..."
            return _fail(
                2, f"'{' '.join(shown.split())}': expected the path of a file ({(error.strerror or '').lower()})"
            )
        if error.errno in NO_ROOM:
            where = f" of '{error.filename}'" if error.filename else ""
            return _fail(4, f"no space is left on the device{where} ({(error.strerror or '').lower()})")
        raise
    except RuntimeError as error:
        if "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
            advice = "a smaller data.capacity or batch_size may help; `doctor --config FILE` says what fits"
            return _fail(4, f"out of memory ({' '.join(str(error).split())[:200]}); {advice}")
        raise


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        from dsob_pl import __version__

        print(__version__)
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        raise UsageError(f"unknown command '{command}'{nearest(command, COMMANDS)} (one of {', '.join(COMMANDS)})")
    if command == "evaluate":
        from dsob_pl.cli.evaluate import evaluate

        return evaluate(rest)
    if command == "explain":
        from dsob_pl.cli.explain import explain

        return explain(rest)
    if command == "sweep":
        from dsob_pl.cli.sweep import sweep

        return sweep(rest)
    if command == "doctor":
        from dsob_pl.cli.doctor import doctor

        return doctor(rest)
    if command == "tracking":
        from dsob_pl.cli.tracking import tracking

        return tracking(rest)
    if command == "report":
        from dsob_pl.cli.report import report

        return report(rest)
    # Before anything heavy is imported: a missing file is reported at once.
    from dsob_pl.cli.config_files import read_sources

    sources = read_sources(rest)
    # Loading the libraries makes a million objects that stay; looking for garbage among them, now and at the end of
    # the process, takes a second.
    gc.disable()
    try:
        from dsob_pl.cli.run import run
    finally:
        gc.freeze()
        gc.enable()
    return run(command, rest, sources)


def _reader_left() -> bool:
    """Whether nobody reads stdout any more (``... | head``); what is still to be written there is then dropped."""
    stdout = select.poll()
    stdout.register(sys.stdout, select.POLLERR)
    if not stdout.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _fail(code: int, message: str) -> int:
    if os.environ.get("DSOB_PL_TRACEBACK"):
        traceback.print_exc()
    print(f"dsob_pl: error: {' '.join(message.split())}", file=sys.stderr)
    return code
