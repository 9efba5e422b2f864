# The SAM-Med3D app: its arguments are those of apps/sam_med3d_ich/train.py.
#
#   make docker APP=sam_med3d_ich
#   docker run --rm --init -v "$PWD/outputs:/workspace/outputs" --user "$(id -u)" quartet-sam_med3d_ich --demo
ARG BASE_IMAGE=quartet-base:latest

FROM ${BASE_IMAGE} AS build
# Nothing runs from this stage, so it may end as root.
# hadolint ignore=DL3002
USER 0
WORKDIR /build
COPY requirements/base.txt requirements/sam_med3d_ich.txt requirements/
# Only what the base lacks lands in /opt/app; the runtime stage lays it over /opt/venv without copying the rest again.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m pip install --disable-pip-version-check --no-cache-dir --no-input --progress-bar off \
      --prefix /opt/app --require-hashes --requirement requirements/sam_med3d_ich.txt \
 && mkdir -p /opt/app

FROM ${BASE_IMAGE} AS runtime
USER 0
WORKDIR /workspace
COPY --from=build /opt/app/ /opt/venv/
COPY LICENSE pyproject.toml ./
COPY libs libs
COPY apps/__init__.py apps/__init__.py
COPY apps/sam_med3d_ich apps/sam_med3d_ich
COPY configs/shared configs/shared
COPY configs/sam_med3d_ich configs/sam_med3d_ich
RUN python -m compileall -q libs apps
# docker/build.sh gives both; without a revision run.json has the release.
ARG VERSION=
ARG REVISION=
ENV QUARTET_REVISION=${REVISION}
LABEL org.opencontainers.image.title="quartet-sam_med3d_ich" \
      org.opencontainers.image.description="Fine-tune SAM-Med3D to segment intracerebral haemorrhage in brain CT" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
ENTRYPOINT ["python", "apps/sam_med3d_ich/train.py"]
