# The ad classifier: its arguments are those of apps/multimodal_ads/train.py.
#
#   make docker APP=multimodal_ads
#   docker run --rm --init -v "$PWD/whole_finetune:/workspace/whole_finetune" --user "$(id -u)" quartet-multimodal_ads --demo
ARG BASE_IMAGE=quartet-base:latest

FROM ${BASE_IMAGE} AS build
# Nothing runs from this stage, so it may end as root.
# hadolint ignore=DL3002
USER 0
WORKDIR /build
COPY requirements/base.txt requirements/multimodal_ads.txt requirements/
# Only what the base lacks lands in /opt/app; the runtime stage lays it over /opt/venv without copying the rest again.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip install --disable-pip-version-check --no-cache-dir --no-input --progress-bar off \
      --prefix /opt/app --require-hashes --requirement requirements/multimodal_ads.txt \
 && mkdir -p /opt/app

FROM ${BASE_IMAGE} AS runtime
USER 0
WORKDIR /workspace
COPY --from=build /opt/app/ /opt/venv/
COPY LICENSE pyproject.toml ./
COPY libs libs
COPY apps/__init__.py apps/__init__.py
COPY apps/multimodal_ads apps/multimodal_ads
COPY configs/shared configs/shared
COPY configs/multimodal_ads configs/multimodal_ads
# Runs go to whole_finetune/, features and downloaded weights to outputs/, whoever the user is.
RUN python -m compileall -q libs apps \
 && install -d -m 1777 whole_finetune
# docker/build.sh gives both; without a revision run.json has the release.
ARG VERSION=
ARG REVISION=
ENV QUARTET_REVISION=${REVISION} \
    HF_HOME=/workspace/outputs/huggingface
LABEL org.opencontainers.image.title="quartet-multimodal_ads" \
      org.opencontainers.image.description="Train a classifier that tells ads from other images, by picture and text" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
ENTRYPOINT ["python", "apps/multimodal_ads/train.py"]
