"""Serve a trained model to OpenAI's clients.

    python tools/serve.py runs/demo
    python tools/serve.py models:/demo@champion host=0.0.0.0 port=8080

The model is the folder of a run, a stage, a checkpoint or a release, or a registered version by the registry of
$MLFLOW_TRACKING_URI. Then, from another terminal:

    curl http://127.0.0.1:8000/v1/models

Where $AF_SERVING_KEYS holds keys, one a line or separated by commas, clients show one of them.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from megatron_af.config.keys import describe
from megatron_af.entry import command, importing
from megatron_af.release.named import named, registered_name
from megatron_af.serve.settings import ServingConfig, check_address, load_settings

DEFAULT = Path(__file__).parents[1] / "configs/serving/default.yaml"


@command
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe(ServingConfig), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder, or models:/NAME@ALIAS, models:/NAME/NUMBER")
    parser.add_argument("--config", default=str(DEFAULT), help="YAML file of settings (configs/serving/default.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    settings = load_settings(arguments.config, arguments.overrides)
    check_address(settings)
    run(named(arguments.model), replace(settings, name=settings.name or registered_name(arguments.model)))
    return 0


def run(place: Path, settings: ServingConfig) -> None:
    """Until SIGTERM or SIGINT: then what was begun is answered."""
    with importing():
        import uvicorn

        from megatron_af.serve.loaded_model import LoadedModel
        from megatron_af.serve.server import make_app

    app = make_app(LoadedModel(place, precision=settings.precision), settings)
    uvicorn.run(app, host=settings.host, port=settings.port, timeout_graceful_shutdown=60)


if __name__ == "__main__":
    sys.exit(main())
