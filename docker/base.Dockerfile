# What every app's image stands on: Python, the pinned packages of the core, a user without rights.
#
#   docker build -f docker/base.Dockerfile -t quartet-base .          (`make docker APP=perceiver` does it)
#
# PYTHON_IMAGE may be any image with Python 3.11+ and its venv module; give a digest (name@sha256:...) for an exact base.
ARG PYTHON_IMAGE=docker.io/library/python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv /opt/venv
WORKDIR /build
COPY requirements/base.txt requirements/
# Wheels with known hashes alone, so that nothing runs while it is installed. A private package index is given as a build secret (pip.conf), which is in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/venv/bin/python -m pip install --disable-pip-version-check --no-cache-dir --no-input --progress-bar off \
      --require-hashes --requirement requirements/base.txt

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 1000 --user-group --create-home quartet \
 && install -d -m 1777 /workspace/outputs \
 && install -d /workspace/data
COPY --from=build /opt/venv /opt/venv
# Caches and the user's name come from the environment, so that any --user works; the NVIDIA runtime reads the last two.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/workspace/libs:/workspace \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    USER=quartet \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/cache/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /workspace
USER 1000:1000
