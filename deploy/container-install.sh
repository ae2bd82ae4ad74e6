#!/bin/sh
# Put fusionflow and what it needs into a virtual environment, in the versions of constraints.txt.
#
#   sh deploy/container-install.sh FOLDER VARIANT EXTRAS [PIP OPTION]...
#
# in the folder of pyproject.toml. VARIANT is cpu or gpu; EXTRAS, with commas between, may be "".
set -eu

folder=$1 variant=$2 extras=$3
shift 3

case $variant in
  cpu) ;;
  gpu) extras=gpu${extras:+,$extras} ;;
  *) echo "VARIANT is '$variant': give cpu or gpu" >&2; exit 2 ;;
esac

# pip only warns of an extra that does not exist.
python3 - "$extras" <<'CHECK'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    known = tomllib.load(file)["project"]["optional-dependencies"]
unknown = set(filter(None, sys.argv[1].split(","))) - set(known)
if unknown:
    print(f"No extra {', '.join(sorted(unknown))}: give of {', '.join(known)}", file=sys.stderr)
    raise SystemExit(2)
CHECK

python3 -m venv "$folder"
pip() { "$folder/bin/python" -m pip --no-cache-dir --disable-pip-version-check "$@"; }
pip wheel --quiet --no-deps --wheel-dir dist "$@" .
pip install --quiet --no-compile --constraint constraints.txt "$@" \
  "fusionflow${extras:+[$extras]} @ file://$(realpath dist/fusionflow-*.whl)"
pip check
rm -r dist
# Nothing is installed later.
pip uninstall --quiet --yes setuptools pip
# Without the times of files, which some builders round when they copy: bytecode would be stale.
"$folder/bin/python" -m compileall -qf -j 0 --invalidation-mode unchecked-hash "$folder/lib" \
  || echo "These files are for another Python; nothing here imports them." >&2

"$folder/bin/python" - "$variant" <<'REPORT'
import platform
import sys

import torch

import fusionflow

cuda = torch.version.cuda
print(
    f"fusionflow {fusionflow.__version__} ({sys.argv[1]}) on Python {platform.python_version()}, "
    f"PyTorch {torch.__version__} {f'with CUDA {cuda}' if cuda else 'without CUDA'}"
)
if cuda and sys.argv[1] == "cpu":
    print(
        "The index gave a PyTorch with CUDA, several GB that a cpu image does not need. Name an "
        "index that has CPU wheels: PIP_OPTIONS='--extra-index-url URL'",
        file=sys.stderr,
    )
if not cuda and sys.argv[1] == "gpu":
    print("The index gave a PyTorch without CUDA: no use of a GPU. Name another", file=sys.stderr)
    raise SystemExit(1)
REPORT
