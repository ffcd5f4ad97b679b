"""Writes an index of the API, from its docstrings, to docs/: python tools/docs.py [FOLDER].

Needs the extra `docs` (pdoc) and no network; open docs/index.html.
"""

import pkgutil
import sys
from pathlib import Path

import pdoc

import noisy_fm


def main(folder: str = "docs") -> None:
    modules = [m.name for m in pkgutil.iter_modules(noisy_fm.__path__) if m.name[0] != "_"]
    # pdoc follows __all__, which names what one imports: here, every module is wanted too.
    noisy_fm.__all__ = sorted({*noisy_fm.__all__, *modules})
    for name in set(noisy_fm.__all__) - set(modules):  # imported on first use
        setattr(noisy_fm, name, getattr(noisy_fm, name))
    pdoc.render.configure(docformat="google", footer_text=f"noisy_fm {noisy_fm.__version__}")
    pdoc.pdoc("noisy_fm", output_directory=Path(folder))
    missing = [name for name in modules if not Path(folder, "noisy_fm", f"{name}.html").exists()]
    if missing:
        sys.exit(f"error: no page of {', '.join(missing)}")
    print(f"{len(modules)} modules: {folder}/index.html")


if __name__ == "__main__":
    main(*sys.argv[1:])
