# Training and evaluation on CUDA 13 GPUs, with CUDA, cuDNN and NCCL's InfiniBand stack from NVIDIA's image.
#   docker build -f kubeflow/images/gpu.Dockerfile -t megatron-af:gpu \
#     --build-arg "COMMIT=$(git describe --match= --always --abbrev=40 --dirty)" .
# The entry point is python, so that the arguments are a tool and its own: tools/pretrain_af.py --config …
FROM nvcr.io/nvidia/cuda-dl-base:25.10-cuda13.0-devel-ubuntu24.04

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MLFLOW_DISABLE_TELEMETRY=true PATH=/opt/venv/bin:$PATH

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12-dev python3.12-venv ffmpeg libsndfile1 g++ \
    && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 10001 af && useradd --uid 10001 --gid af --create-home af \
    && python3.12 -m venv /opt/venv
WORKDIR /opt/megatron-af

# Dependencies change seldom and take minutes (Transformer Engine compiles): they are installed before any code is copied,
# so that a change of code rebuilds only the last layers. Each file is compared with its hash, and what comes as source
# is built with what came so: pip's own build environments know no hashes.
COPY locks/build.lock locks/run.lock locks/gpu.lock locks/
RUN pip install --no-deps --require-hashes --requirement locks/build.lock \
    && pip install --no-deps --require-hashes --no-build-isolation --requirement locks/run.lock
# faiss-gpu fills the folder of faiss-cpu. Transformer Engine's set-up would rather download an extension that was
# compiled elsewhere, past pip and its hashes, than compile its own.
RUN pip uninstall --yes faiss-cpu \
    && NVTE_PYTORCH_FORCE_BUILD=TRUE \
    pip install --no-deps --require-hashes --no-build-isolation --requirement locks/gpu.lock \
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
