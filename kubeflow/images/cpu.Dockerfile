# The demo, the pipelines' own steps, MLflow and the reaper; no GPU.
#   docker build -f kubeflow/images/cpu.Dockerfile -t megatron-af:cpu \
#     --build-arg "COMMIT=$(git describe --match= --always --abbrev=40 --dirty)" .
# The entry point is python, so that the arguments are a tool and its own: tools/prepare_data.py prepare --config …
# The digest of the tag's index, which lists an image for each processor.
FROM python:3.12.11-slim-bookworm@sha256:519591d6871b7bc437060736b9f7456b8731f1499a57e22e6c285135ae657bf7

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MLFLOW_DISABLE_TELEMETRY=true

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg libsndfile1 g++ \
    && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 10001 af && useradd --uid 10001 --gid af --create-home af
WORKDIR /opt/megatron-af

# Dependencies change seldom and take minutes: they are installed before any code is copied, so that a change of code
# rebuilds only the last layers. Each file is compared with its hash, and what comes as source is built with what came
# so: pip's own build environments know no hashes.
COPY locks/build.lock locks/run.lock locks/
RUN pip install --no-deps --require-hashes --requirement locks/build.lock \
    && pip install --no-deps --require-hashes --no-build-isolation --requirement locks/run.lock \
    && pip check

COPY kubeflow/images/inventory.py /tmp/
RUN python /tmp/inventory.py sbom > sbom.cdx.json

COPY pyproject.toml README.md LICENSE ./
COPY megatron_af megatron_af
COPY dali_pipes dali_pipes
COPY kubeflow/af_pipelines kubeflow/af_pipelines
COPY tools tools
COPY configs configs
# Installed where it lies, as by `make`: what a run made, and what is registered, names its version.
RUN pip install --no-deps --no-build-isolation -e .

# There is no checkout in here, and runs say which commit they come from, and whether it was changed.
ARG COMMIT=
ENV MEGATRON_AF_COMMIT=$COMMIT

USER 10001:10001
ENTRYPOINT ["python"]
CMD ["-m", "af_pipelines", "--help"]
