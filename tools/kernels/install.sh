#!/usr/bin/env bash
# Installs the compilers of requirements.txt, which come as Python packages, into a directory: bin/nvcc
# and lib/libnvrtc.so.13. Does nothing if they are there.
#
# usage: install.sh DIRECTORY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
directory=$1
python=${PYTHON:-python3}

# Says what is installed: copied last, so that an interrupted installation is started again.
record=$directory/requirements.txt
if cmp --quiet "$here/requirements.txt" "$record" 2> /dev/null; then
  exit 0
fi

mkdir -p "$directory"
packages=$(mktemp -d "$directory/packages.XXXXXX")
trap 'rm -rf "$packages"' EXIT
PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --target "$packages" --requirement "$here/requirements.txt"
for part in "$packages"/nvidia/cu13/*; do
  rm -rf "${directory:?}/$(basename "$part")"
  mv "$part" "$directory"
done
cp "$here/requirements.txt" "$record"

# The build looks for an nvcc only when something that it knows has changed.
touch "$here/../../build.rs"
