"""Runs ``fit``, ``validate`` or ``test``, and says how it ended."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dsob_pl.cli.config_files import Source, leaves, option_values, parse
from dsob_pl.cli.diagnose import causes
from dsob_pl.cli.foreign import denied, importing_only, is_dotted, parts_named
from dsob_pl.cli.lightning_cli import CLI, relative, shortened
from dsob_pl.cli.memory import keep_freed_memory
from dsob_pl.cli.resume import check_one_seed, resume_command
from dsob_pl.errors import Interrupted, RunFailed, UsageError
from dsob_pl.training import checkpoint_config, read_checkpoint


def run(command: str, arguments: list[str], sources: list[Source]) -> int:
    """Runs ``fit``, ``validate`` or ``test`` and returns its exit code.

    Raises:
        UsageError: bad input; nothing has been created, but where a callback finds out in mid-run.
        RunFailed: the run cannot go on; names the last good checkpoint.
    """
    quiet()
    keep_freed_memory()
    with ExitStack() as only:
        return _run(command, arguments, sources, only)


def _run(command: str, arguments: list[str], sources: list[Source], only: ExitStack) -> int:
    if command != "fit" and len(sources) == 1:
        # The settings of the run that wrote the checkpoint; jsonargparse takes the text of a config for its file.
        for path in option_values(arguments, "--ckpt_path")[-1:]:
            content = read_checkpoint(path)
            check_one_seed(content, path)
            text = checkpoint_config(content, path)
            label = f"config in checkpoint '{path}'"
            tree = parse(text, label)
            own = {str(value) for source in sources for _, value in leaves(source.tree) if is_dotted(value)}
            only.enter_context(importing_only(parts_named(tree, path) | own))
            sources = [Source(label, tree), *sources]
            arguments = ["--config", text, *arguments]
    try:
        cli = CLI(command, arguments, sources)
    except SystemExit as leave:  # after --help and --print_config
        return int(leave.code or 0)
    except UsageError as error:
        named = next((found for link in causes(error) if (found := denied(link)) is not None), None)
        if named is None:
            raise
        raise UsageError(f"the checkpoint's config names '{named}', which is not called") from error
    try:
        cli.start()
    except RunFailed as error:
        raise type(error)(f"{error}; {_kept(cli)}") from error
    except UsageError as error:  # such as an option that turns out not to work when learning begins
        if cli.checkpoint is None or not cli.checkpoint.last_model_path:
            raise
        raise UsageError(f"{error}; {_kept(cli)}") from error
    except MisconfigurationException as error:
        raise UsageError(f"trainer: {shortened(error)}") from error
    except RuntimeError as error:
        if not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise UsageError(f"trainer.callbacks: {shortened(error)}; {_kept(cli)}") from error
    except Interrupted as stopped:
        with suppress(OSError):  # a terminal that is gone
            print(f"dsob_pl: {_HOW.get(stopped.signal, 'stopped')}; {_kept(cli)}", file=sys.stderr)
            if cli.checkpoint is not None and cli.checkpoint.last_model_path:
                again = resume_command(command, arguments, relative(cli.checkpoint.last_model_path))
                print(f"dsob_pl: go on with it: {again}", file=sys.stderr)
        return 128 + stopped.signal
    except SystemExit as leave:
        if not isinstance(leave.__context__, KeyboardInterrupt):
            raise
        print(f"dsob_pl: interrupted; {_kept(cli)}", file=sys.stderr)
        return 130
    if cli.runs is not None and cli.runs.failed:
        reasons = "; ".join(f"seed {seed}: {reason}" for seed, reason in cli.runs.failed.items())
        count = len({*cli.parts, *cli.runs.failed})  # those that had failed before the run went on are no parts of it
        raise RunFailed(f"{len(cli.runs.failed)} of {count} seeds failed, the others finished; {reasons}")
    return 0


_HOW: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


def quiet() -> None:
    """Keeps Lightning's hints and notices off the terminal; warnings of its own worth come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*isinstance.treespec.*", ".*Checkpoint directory.*"):
        warnings.filterwarnings("ignore", message)


def _kept(cli: CLI) -> str:
    checkpoint = cli.checkpoint
    paths = [] if checkpoint is None else [checkpoint.last_model_path, checkpoint.best_model_path]
    # Lightning names a file before it is written.
    kept = next((path for path in paths if path and Path(path).is_file()), None)
    return "no checkpoint had been saved" if kept is None else f"last good checkpoint: {relative(kept)}"
