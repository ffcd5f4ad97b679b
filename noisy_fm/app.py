"""The command line: flags to a config, and a mistake to one line and an exit code."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence

from noisy_fm.config import OPEN_ENDED
from noisy_fm.messages import print_anywhere, say, settle


def run_app(main: Callable, *, config_file: str | None = None, workdir: str | None = None) -> None:
    """Parses `--config` and `--workdir`, runs `main(config, workdir)`, and words its failures.

    A user's mistake is one line on stderr and exit code 2 (its traceback with `--traceback`);
    Ctrl-C ends with 130 and a signal of `signals.STOP` with 143, after what was running has been
    saved.
    """
    from absl import app, flags, logging
    from ml_collections import config_flags

    from noisy_fm import hosts, signals

    print_anywhere()
    flags.DEFINE_bool("traceback", False, "show where an error was raised")
    flags.DEFINE_string("workdir", workdir, "folder for results; a run found there is resumed")
    config_flags.DEFINE_config_file(
        "config", config_file, "config file, `:arguments` after it; override with --config.KEY=…"
    )
    app.usage = lambda *args, **kwargs: _usage(main)  # type: ignore[assignment]

    def parse(argv):
        for path in (a.split("=", 1)[1].split(":")[0] for a in argv if a.startswith("--config=")):
            if not os.path.isfile(path):
                fail(f"there is no config file {path}")
        try:
            return app.parse_flags_with_usage(argv) if "--help" in argv else flags.FLAGS(argv)
        except (flags.Error, *MISTAKES, AttributeError, TypeError, KeyError, ImportError) as error:
            fail(_cause(error, argv))

    def wrapped(argv):
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}; expected --config=FILE --workdir=DIR")
        for name in ("config", "workdir"):
            if not flags.FLAGS[name].value:
                fail(f"--{name} is missing; see --help")
        logging.set_verbosity(logging.WARNING)
        # What orbax's threads fail at is raised too, and then said in one line.
        logging.get_absl_handler().addFilter(lambda record: "/orbax/" not in record.pathname)
        signals.listen(signals.terminate)  # of several hosts JAX's own service takes SIGTERM
        try:
            hosts.connect()
            main(flags.FLAGS.config, flags.FLAGS.workdir)
        except KeyboardInterrupt:
            fail("interrupted; run the same line again to go on", 130)
        except signals.Terminated:
            fail("terminated; run the same line again to go on", 143)
        except MISTAKES as error:
            if flags.FLAGS.traceback:
                raise
            fail(error)
        settle()

    app.run(wrapped, flags_parser=parse)


# What a user can cause; anything else is a fault of ours and keeps its traceback.
MISTAKES = (ValueError, OSError, FloatingPointError)


def _cause(error: BaseException, argv: Sequence[str]) -> object:
    """What a config file raised, under the flag errors that wrap it with a traceback."""
    while "Error whilst parsing config file" in str(error) and error.__context__ is not None:
        error = error.__context__
    inner = error if isinstance(error, KeyError) else error.args[0] if error.args else None
    if isinstance(inner, KeyError):  # how ml_collections says that a key does not exist
        name, _, hint = str(inner.args[0]).partition("\n")
        name = name.strip("'")
        given = (arg[2:].partition("=")[0] for arg in argv if arg.startswith("--config."))
        flags = [key for key in given if name in key.split(".")[1:]]  # one of them is it
        if not flags:
            return f"the config file uses {name!r}, which is not there; {hint}".rstrip("; ")
        if any(key.partition(f".{name}")[0].split(".")[-1] in OPEN_ENDED for key in flags):
            hint = f"{hint} An argument that a config file does not set is set there".strip()
        return f"there is no key {' or '.join(flags)}; {hint or 'see noisy_fm/config.py'}"
    return error


def _usage(main: Callable) -> None:
    module = sys.modules[main.__module__]
    say(inspect.getdoc(module) or "")
    say("\nflags: --config=FILE[:ARG=VALUE,…] --config.KEY=VALUE … --workdir=DIR --traceback")


def fail(error: object, code: int = 2) -> None:
    """Prints one line to stderr and ends the process."""
    say(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    settle()
    os._exit(code) if code in (130, 143) else sys.exit(code)
