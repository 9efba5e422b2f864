# The document classifier: its arguments are those of apps/doc_ensemble/train.py.
#
#   make docker APP=doc_ensemble
#   docker run --rm --init -v "$PWD/outputs:/workspace/outputs" --user "$(id -u)" quartet-doc_ensemble --demo
#   docker run --rm --init -v "$PWD/outputs:/workspace/outputs" --user "$(id -u)" --entrypoint python \
#     quartet-doc_ensemble apps/doc_ensemble/run_ensemble_experiment.py
ARG BASE_IMAGE=quartet-base:latest

FROM ${BASE_IMAGE} AS build
# Nothing runs from this stage, so it may end as root.
# hadolint ignore=DL3002
USER 0
WORKDIR /build
COPY requirements/base.txt requirements/doc_ensemble.txt requirements/
# Only what the base lacks lands in /opt/app; the runtime stage lays it over /opt/venv without copying the rest again.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip install --disable-pip-version-check --no-cache-dir --no-input --progress-bar off \
      --prefix /opt/app --require-hashes --requirement requirements/doc_ensemble.txt \
 && mkdir -p /opt/app

FROM ${BASE_IMAGE} AS runtime
USER 0
WORKDIR /workspace
COPY --from=build /opt/app/ /opt/venv/
COPY LICENSE pyproject.toml ./
COPY libs libs
COPY apps/__init__.py apps/__init__.py
COPY apps/doc_ensemble apps/doc_ensemble
COPY configs/shared configs/shared
COPY configs/doc_ensemble configs/doc_ensemble
RUN python -m compileall -q libs apps
# docker/build.sh gives both; without a revision run.json has the release.
ARG VERSION=
ARG REVISION=
# Downloaded weights stay with the runs, outside of the container.
ENV QUARTET_REVISION=${REVISION} \
    HF_HOME=/workspace/outputs/huggingface
LABEL org.opencontainers.image.title="quartet-doc_ensemble" \
      org.opencontainers.image.description="Train classifiers of document pages and let several of them decide together" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
ENTRYPOINT ["python", "apps/doc_ensemble/train.py"]
