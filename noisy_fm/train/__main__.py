"""Trains one model from a config.

    python -m noisy_fm.train --config=configs/pretrain/emoji.py:noise_rate=0.1 --workdir=runs/a

The same line on every host; run it again to resume. Keys are overridden with --config.KEY=VALUE.
"""

from ml_collections import ConfigDict

from noisy_fm import app, hosts, train
from noisy_fm import config as config_lib
from noisy_fm.messages import say


def main(config: ConfigDict, workdir: str) -> None:
    config_lib.cache_compilations()
    _, made, result = train.run(config, workdir)
    if not hosts.first():
        return
    accuracy = result["eval"].get("accuracy")
    say(
        f"{result['num_params']:,} parameters, {made.steps} steps, "
        f"noise {made.manifest.realised:.1%} ({config.noise.kind}), "
        + ("" if accuracy is None else f"eval accuracy {accuracy:.4f}; ")
        + f"results in {workdir}"
    )


if __name__ == "__main__":
    app.run_app(main, defaults=config_lib.train)
