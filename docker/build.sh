#!/usr/bin/env bash
# Build an app's image with whichever of docker, podman, buildah works here: docker/build.sh APP [flags for the builder]
#
#   ENGINE           docker | podman | buildah; default: the first one that answers
#   PYTHON_IMAGE     the image to start from; default: see docker/base.Dockerfile
#   PIP_CONFIG_FILE  a pip.conf for the build (private index); mounted as a secret, kept in no layer
#   TAG              tag of the images made; default: latest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

app=${1:?Usage: docker/build.sh APP [flags for the builder]}
shift
tag=${TAG:-latest}
if [ ! -f "docker/$app.Dockerfile" ]; then
  echo "docker/$app.Dockerfile does not exist; there is: $(cd docker && echo ./*.Dockerfile)" >&2
  exit 2
fi

# A docker client whose engine does not run answers --version but not `info`.
works() { command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1; }
engine=${ENGINE:-}
if [ -z "$engine" ]; then
  for candidate in docker podman buildah; do
    if works "$candidate"; then engine=$candidate; break; fi
  done
fi
if [ -z "$engine" ]; then
  echo "No docker, podman or buildah answers here (a docker client alone is not enough: start its engine)." >&2
  echo "Debian, Ubuntu: apt install buildah; docs/DOCKER.md has the rest." >&2
  exit 2
fi

prefix=localhost/
case $engine in
  docker) build=(docker build) prefix= ;;
  podman) build=(podman build) ;;
  buildah)
    build=(buildah build --layers)
    # Without an OCI runtime buildah still runs build steps, in a chroot.
    command -v crun >/dev/null || command -v runc >/dev/null || export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
    ;;
  *) echo "ENGINE=$engine: expected docker, podman or buildah" >&2; exit 2 ;;
esac
if [ -n "${PIP_CONFIG_FILE:-}" ]; then build+=(--secret "id=pip.conf,src=$PIP_CONFIG_FILE"); fi
if [ "$engine" = docker ]; then export DOCKER_BUILDKIT=1; fi

version=$(sed -n 's/^VERSION = "\(.*\)"/\1/p' libs/mlcore/base/version.py)
# In the words of that file, for a run inside an image must say what one in the checkout says; empty outside a checkout.
revision=
if [ -n "$(git ls-files docker/build.sh 2>/dev/null)" ]; then
  revision=$(git rev-parse --short=12 HEAD)
  if [ -n "$(git status --porcelain --untracked-files=no)" ]; then revision+=+changes; fi
fi
base=${prefix}quartet-base:$tag
image=${prefix}quartet-$app:$tag

echo "Building $image with $engine: version $version, revision ${revision:-not known}"
"${build[@]}" "$@" ${PYTHON_IMAGE:+--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE"} -f docker/base.Dockerfile -t "$base" .
"${build[@]}" "$@" --build-arg "BASE_IMAGE=$base" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
  -f "docker/$app.Dockerfile" -t "$image" .
echo "Built $image; try it without network: docker/smoke.sh $app"
