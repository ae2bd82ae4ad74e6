#!/usr/bin/env bash
# Build the container image with what is here of buildah, podman and docker.
#
#   deploy/build-container.sh [OPTION OF THE BUILDER]...
#
# Variables: VARIANT (cpu, gpu), EXTRAS, PIP_OPTIONS, BASE, TAG, BUILDER. See deploy/containers.md.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${BUILDER:-}" ]; then
  for BUILDER in buildah podman docker none; do
    command -v "$BUILDER" >/dev/null && break
  done
fi
if [ "$BUILDER" = none ]; then
  echo "No buildah, podman or docker here. On Debian or Ubuntu: apt-get install buildah" >&2
  exit 1
fi

variant=${VARIANT:-cpu}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git describe --always --dirty --exclude '*' --abbrev=40 2>/dev/null || echo unknown)
options=(
  --file deploy/Containerfile
  --tag "${TAG:-fusionflow:$version-$variant}"
  --build-arg "VARIANT=$variant"
  --build-arg "EXTRAS=${EXTRAS:-}"
  --build-arg "PIP_OPTIONS=${PIP_OPTIONS:-}"
  --build-arg "VERSION=$version"
  --build-arg "REVISION=$revision"
)
if [ -n "${BASE:-}" ]; then
  options+=(--build-arg "BASE=$BASE")
fi
case ${BUILDER##*/} in
  # Older ones do not look for it beside the Containerfile, as docker does.
  buildah | podman) options+=(--ignorefile deploy/Containerfile.dockerignore) ;;
esac
exec "$BUILDER" build "${options[@]}" "$@" .
