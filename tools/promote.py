"""Which model is in production: register, gate, promote, roll back, show.

    python tools/promote.py register --config configs/demo.yaml [--stage NAME] [--digest sha256:…]
    python tools/promote.py gate     --config configs/demo.yaml [--version NUMBER|ALIAS]
    python tools/promote.py promote  --config configs/demo.yaml [--version NUMBER|ALIAS] [--why TEXT]
    python tools/promote.py rollback --config configs/demo.yaml --why TEXT
    python tools/promote.py show     --config configs/demo.yaml

`register` makes the newest checkpoint of a stage (the last one) a version and the candidate; `gate` holds a version
(the candidate) against `registry.gates`; `promote` does so again and moves the aliases candidate -> champion ->
previous-champion; `rollback` moves them back. Exit codes: 0 done, 1 try again (somebody else is promoting, the server
is away), 2 no use in trying again (unknown version, changed checkpoint, unusable gates, a user who may not), 42 refused
by a gate.
"""

import argparse
import sys

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.entry import command


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["register", "gate", "promote", "rollback", "show"])
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--stage", default="", help="register: stage to take the checkpoint of")
    parser.add_argument("--digest", default="", help="register: digest that the checkpoint has to have")
    parser.add_argument("--version", default="candidate", help="gate, promote: number or alias")
    parser.add_argument("--why", default="", help="promote, rollback: reason, kept with the version")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    if arguments.command == "rollback" and not arguments.why:
        parser.error("rollback: expected --why, which is kept with the version")
    # Imported only now: --help need not wait for MLflow, whose environment the first of them sets.
    from megatron_af.tracking.runs import tracking_uri
    from megatron_af.tracking.store import in_words, is_of_use_again

    from mlflow.exceptions import MlflowException  # isort: skip

    config = load_config(arguments.config, arguments.overrides)
    try:
        return carry_out(config, arguments)
    except MlflowException as error:
        print(in_words(error, tracking_uri(config)), file=sys.stderr)
        return 1 if is_of_use_again(error) else 2


def carry_out(config: Config, arguments: argparse.Namespace) -> int:
    from megatron_af.release import commands
    from megatron_af.release.versions import PromotionRefused

    if arguments.command == "register":
        version = commands.register(config, arguments.stage, arguments.digest)
        print(f"registered version {version} as candidate")
    elif arguments.command == "gate":
        report = commands.gate(config, arguments.version)
        print(report.text())
        return 0 if report.passed else PromotionRefused.exit_code
    elif arguments.command == "promote":
        report = commands.promote(config, arguments.version, arguments.why or "passed its gates")
        print(f"{report.text()}\nversion {report.version} is the champion")
    elif arguments.command == "rollback":
        good, bad = commands.rollback(config, arguments.why)
        print(f"version {good} is the champion again, instead of {bad}")
    else:
        print(commands.show(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
