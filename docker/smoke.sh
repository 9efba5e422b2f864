#!/usr/bin/env bash
# Train the demo inside an app's image, without network and without rights, and look at what it leaves:
#   docker/smoke.sh APP [arguments of the app; default: --demo]
#
#   ENGINE   docker | podman | buildah; default: the first one that answers and has the image
#   TAG      default: latest
set -euo pipefail

app=${1:?Usage: docker/smoke.sh APP [arguments of the app]}
shift
if [ $# -eq 0 ]; then set -- --demo; fi
set -- "$@" --output_dir outputs/smoke

has_image() {
  case $1 in
    docker | podman) "$1" image inspect "$2" >/dev/null 2>&1 ;;
    buildah) buildah inspect --type image "$2" >/dev/null 2>&1 ;;
    *) echo "ENGINE=$1: expected docker, podman or buildah" >&2; exit 2 ;;
  esac
}
image=
for engine in ${ENGINE:-docker podman buildah}; do
  for name in "quartet-$app:${TAG:-latest}" "localhost/quartet-$app:${TAG:-latest}"; do
    if command -v "$engine" >/dev/null && has_image "$engine" "$name"; then image=$name; break 2; fi
  done
done
if [ -z "$image" ]; then echo "No image quartet-$app:${TAG:-latest}: make docker APP=$app" >&2; exit 2; fi

outputs=$(mktemp -d)
container=
clean_up() {
  if [ -n "$container" ]; then buildah rm "$container" >/dev/null; fi
  # Files of the container's user may need its rights to go; a folder left behind is said, not hidden.
  rm -rf "$outputs" || echo "left behind: $outputs" >&2
}
trap clean_up EXIT
chmod 1777 "$outputs"

# inside COMMAND...: run it in the image as the image's user, with nothing but a loopback interface.
if [ "$engine" = buildah ]; then
  command -v crun >/dev/null || command -v runc >/dev/null || export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
  container=$(buildah from --shm-size 4g "$image")
  # The chroot isolation has no network of its own to take away: unshare does it.
  inside() { unshare --net -- buildah run -v "$outputs:/workspace/outputs" "$container" -- "$@"; }
  read -ra entrypoint <<<"$(buildah inspect --type image --format '{{range .OCIv1.Config.Entrypoint}}{{.}} {{end}}' "$image")"
else
  inside() { "$engine" run --rm --network none --shm-size 4g --entrypoint "$1" -v "$outputs:/workspace/outputs" "$image" "${@:2}"; }
  read -ra entrypoint <<<"$("$engine" image inspect --format '{{range .Config.Entrypoint}}{{.}} {{end}}' "$image")"
fi

echo "== $image with $engine: user and network"
inside python -c '
import os, pathlib
assert os.getuid() != 0, "runs as root"
assert not os.access("/workspace/libs", os.W_OK), "the code can be written to"
links = [line.split(":")[0].strip() for line in pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]]
assert links == ["lo"], f"a network is there: {links}"
print(f"uid {os.getuid()}, network interfaces: {links}")'

echo "== ${entrypoint[*]} $*"
inside "${entrypoint[@]}" "$@"

echo "== run folder"
inside python -c '
import json, os, pathlib
from mlcore.base.version import VERSION
run = pathlib.Path("outputs/smoke")
record = json.loads((run / "run.json").read_text())
status, code = record["status"], record["code"]
assert status == "finished", f"{run}: {status}"
revision = os.environ.get("QUARTET_REVISION") or VERSION
assert code == revision, f"{run}/run.json: code {code}, expected that of the image: {revision}"
expected = "config.yaml metrics.csv metrics.jsonl summary.json summary.md report.html train.log"
missing = [name for name in expected.split() if not (run / name).stat().st_size]
assert not missing, f"{run}: empty: {missing}"
assert list((run / "checkpoints").glob("best_model.pth")), f"{run}: no checkpoint"
print(f"{run}: {status}, code {code}, {sum(1 for path in run.rglob(chr(42)) if path.is_file())} files")'
echo "OK"
