# Training and evaluation on CUDA 13 GPUs, with NCCL's InfiniBand stack and Transformer Engine from NVIDIA's image.
#   docker build -f kubeflow/images/gpu.Dockerfile -t megatron-af:gpu .
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

# Dependencies change seldom and take minutes (Transformer Engine compiles): they are installed from the lock file before
# any code is copied, so that a change of code rebuilds only the last layers.
COPY pyproject.toml requirements.lock LICENSE ./
COPY kubeflow/images/dependencies.py kubeflow/images/inventory.py /tmp/
# Constraints cannot hold hashes where extras are asked for that the lock file does not cover.
RUN sed '/--hash/d; s/ \\$//' requirements.lock > /tmp/versions.txt
RUN python /tmp/dependencies.py pyproject.toml kubeflow > /tmp/dependencies.txt \
    && pip install --constraint /tmp/versions.txt --requirement /tmp/dependencies.txt
# Its build needs the torch that was just installed, so without a build environment of its own.
RUN python /tmp/dependencies.py --only pyproject.toml gpu > /tmp/gpu.txt \
    && pip uninstall --yes faiss-cpu \
    && pip install --constraint /tmp/versions.txt --no-build-isolation --requirement /tmp/gpu.txt

RUN python /tmp/inventory.py sbom > sbom.cdx.json

COPY megatron_af megatron_af
COPY dali_pipes dali_pipes
COPY kubeflow/af_pipelines kubeflow/af_pipelines
COPY tools tools
COPY configs configs
ENV PYTHONPATH=/opt/megatron-af:/opt/megatron-af/kubeflow

USER 10001:10001
ENTRYPOINT ["python"]
CMD ["-m", "af_pipelines", "--help"]
