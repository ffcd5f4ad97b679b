"""One command for all: `noisy_fm train …` is `python -m noisy_fm.train …`."""

import runpy
import sys

from noisy_fm.messages import print_anywhere, say, unknown

COMMANDS = (
    ("train", "trains one model from a config, under noise"),
    ("study", "pre-trains at each noise rate, extracts, tunes and writes a report"),
    ("report", "writes the report of a study again, from its records"),
    ("features", "extracts the features of a data set with a trained model"),
    ("evaluate", "measures a trained model on any data: zero-shot, retrieval, its own classes"),
    ("export", "a trained model for timm, ONNX and others, checked there"),
    ("spectrum", "the spectra of stored features, as a table and a page"),
)


def main() -> int:
    """Runs the command that the first argument names, or lists the commands."""
    print_anywhere()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        say("noisy_fm COMMAND … (or python -m noisy_fm.COMMAND …); COMMAND --help says more\n")
        for command, words in COMMANDS:
            say(f"  {command:<10} {words}")
        return 0
    if name not in dict(COMMANDS):
        say(f"error: {unknown('command', name, dict(COMMANDS))}", file=sys.stderr)
        return 2
    sys.argv = [f"noisy_fm {name}", *arguments]
    runpy.run_module(f"noisy_fm.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
