"""The command line: flags to a config, and a mistake to one line and an exit code."""

import argparse
import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from noisy_fm.config import OPEN_ENDED, flatten, loosened
from noisy_fm.messages import print_anywhere, say, settle


def run_app(main: Callable, *, defaults: Callable | None = None) -> None:
    """Parses `--config` and `--workdir`, runs `main(config, workdir)`, and words its failures.

    `--help` lists the keys of the config that `defaults()` returns.
    A user's mistake is one line on stderr and exit code 2 (its traceback with `--traceback`);
    Ctrl-C ends with 130 and a signal of `signals.STOP` with 143, after what was running has been
    saved.
    """
    import jax
    from absl import app, flags
    from absl import logging as absl_logging
    from ml_collections import config_flags

    from noisy_fm import hosts, signals

    print_anywhere()
    flags.DEFINE_bool("traceback", False, "show where an error was raised")
    flags.DEFINE_string("workdir", None, "folder for results; a run found there is resumed")
    config_flags.DEFINE_config_file(
        "config", None, "config file, `:arguments` after it; override with --config.KEY=…"
    )
    load = flags.FLAGS["config"].parser
    read = load.parse  # its values are made to fit before the overrides are read
    load.parse = lambda path: loosened(read(os.path.expanduser(path)))  # type: ignore
    app.usage = lambda *args, **kwargs: _usage(main, defaults)  # type: ignore[assignment]

    def parse(argv):
        for path in (a.split("=", 1)[1].split(":")[0] for a in argv if a.startswith("--config=")):
            if not os.path.isfile(os.path.expanduser(path)):
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
        absl_logging.set_verbosity(absl_logging.WARNING)
        if not flags.FLAGS.traceback:
            _hush()
        signals.listen(signals.terminate)  # of several hosts JAX's own service takes SIGTERM
        try:
            hosts.connect()
            hosts.check_devices()
            main(flags.FLAGS.config, flags.FLAGS.workdir)
        except KeyboardInterrupt:
            fail("interrupted; run the same line again to go on", 130)
        except signals.Terminated:
            fail("terminated; run the same line again to go on", 143)
        except MISTAKES as error:
            if flags.FLAGS.traceback:
                raise
            fail(error)
        except jax.errors.JaxRuntimeError as error:
            if flags.FLAGS.traceback or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fail(f"out of memory: {_first_line(error)}; {MEMORY}")
        settle()

    app.run(wrapped, flags_parser=parse)


# What a user can cause; anything else is a fault of ours and keeps its traceback.
MISTAKES = (ValueError, OSError, FloatingPointError)


def _hush() -> None:
    """Drops the tracebacks of a save that failed: it is raised too, and said in one line.

    orbax logs it once a thread, and each of the many writes that it abandons fails on its own.
    """
    from absl import logging as absl_logging

    def wanted(record):
        return not (record.exc_info and {"orbax", "asyncio"} & set(Path(record.pathname).parts))

    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(wanted)
    shown = sys.unraisablehook

    def hook(failed):
        if str(failed.exc_value) != "Event loop is closed":
            shown(failed)

    sys.unraisablehook = hook


# What to do where the accelerator's memory does not suffice.
MEMORY = "a smaller batch_size, more microbatches, or a free device helps"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")


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
        if any(key.startswith("config.evaluators.") for key in flags):
            hint = "an entry of config.evaluators is added in a config file"
        return f"there is no key {' or '.join(flags)}; {hint or '--help lists them'}"
    return error


def _usage(main: Callable, defaults: Callable | None) -> None:
    module = sys.modules[main.__module__]
    say(inspect.getdoc(module) or "")
    say("\nflags: --config=FILE[:ARG=VALUE,…] --config.KEY=VALUE … --workdir=DIR --traceback")
    if defaults is not None:
        say("\nkeys and their defaults, which a config file changes:")
        say("\n".join(_keys(defaults)))


def _keys(defaults: Callable) -> list[str]:
    """`--config.KEY=DEFAULT`, a line a key, and what the defaults' source says on its line."""
    words = dict(re.findall(r'^ *"(\w+)": .*?  # (.*)$', inspect.getsource(defaults), re.M))
    lines = []
    for key, value in flatten(defaults()).items():
        if not key.startswith("pretrain."):
            shown = repr(value) if len(repr(value)) < 50 else f"{repr(value)[:49]}…"
            said = words.get(key.rpartition(".")[2], "")
            lines.append(f"  {f'--config.{key}={shown}':<46} {said}".rstrip())
    if "pretrain" in defaults():
        lines.append(
            "  --config.pretrain.KEY=…, the keys of a training run: python -m noisy_fm train --help"
        )
    return lines


def fail(error: object, code: int = 2) -> None:
    """Prints one line to stderr and ends the process."""
    say(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    settle()
    os._exit(code) if code in (130, 143) else sys.exit(code)


def keyed_flags(flags: Sequence[str], error: Callable[[str], None]) -> tuple[dict, dict]:
    """`--data.KEY=VALUE` and `--model.KEY=VALUE` as {KEY: VALUE} each; `error` words what is not.

    They are arguments of `data.load` and of `load_model`.
    """
    chosen: dict[str, dict] = {"data": {}, "model": {}}
    for flag in flags:
        found = re.fullmatch(r"--(data|model)\.(\w+)=(.*)", flag, re.S)
        if not found:
            error(f"unknown argument {flag}; expected --data.KEY=VALUE, or see --help")
            continue
        group, name, value = found.groups()
        if name in chosen[group]:
            error(f"--{group}.{name} is given twice")
        several = name == "domain" and "," in value
        chosen[group][name] = tuple(value.split(",")) if several else value
    return chosen["data"], chosen["model"]


def chosen_model(flags: argparse.Namespace, arguments: dict):
    """The model that `--model`, `--best`, `--step` and `--model.KEY=VALUE` say."""
    from noisy_fm import pretrained
    from noisy_fm.config import check_arguments
    from noisy_fm.model import load_model

    check_arguments(pretrained.load, arguments, where="--model", given=("source",))
    if "size" in arguments:
        if not arguments["size"].isdecimal():
            raise ValueError(f"--model.size is {arguments['size']!r}; expected pixels a side")
        arguments = {**arguments, "size": int(arguments["size"])}
    return load_model(flags.model, best=flags.best, step=flags.step, **arguments)


def model_parser(name: str, doc: str, *, epilog: str, data: bool = True) -> argparse.ArgumentParser:
    """A command's parser, with the flags of all that take a model; `data`: and run it over some."""
    parser = argparse.ArgumentParser(
        prog=f"python -m noisy_fm.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=epilog,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL",
        help="a training run's folder, or its URL; a folder of timm, open_clip or Hugging Face; or "
        "timm/NAME with --model.path=FILE, its weights (see noisy_fm.load_model)")  # fmt: skip
    add("--best", action="store_true", help="the best checkpoint by config.keep_best")
    add("--step", type=int, help="the checkpoint of this step; by default the newest")
    if not data:
        return parser
    add("--data", required=True, metavar="NAME",
        help="folder, tar, array_record, parquet, tfds:NAME, emoji_domains, digits")  # fmt: skip
    add("--batch-size", type=int, default=128, help="images at a time (128)")
    add("--max-bad", type=float, default=0.001, metavar="SHARE",
        help="stop if more of the images than this share (0.001), and than three, cannot be read; "
        "0: at the first")  # fmt: skip
    return parser


def run_command(work: Callable[[], None], *, again: str = "") -> None:
    """Runs a command's `work`, and words its failures; `again` is added to what was cut short."""
    from noisy_fm import config, hosts, signals

    print_anywhere()
    signals.listen(signals.terminate)
    config.cache_compilations()
    try:
        hosts.check_devices()
        work()
    except KeyboardInterrupt:
        fail(f"interrupted{again}", 128 + signal.SIGINT)
    except signals.Terminated:
        fail(f"terminated{again}", 128 + signal.SIGTERM)
    except MISTAKES as error:
        fail(error)
    settle()
