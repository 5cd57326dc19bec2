#!/usr/bin/env bash
# Collects what a machine with a GPU needs that has neither Rust nor a network: the programs that
# run on CUDA devices with everything that they read, and run.sh, which runs them. `make gpu-pack`
# calls it after building the library. Makes the folder gpu-pack and the archive gpu-pack.tar.xz.
#
# CARGO, MAKE  the programs to use
# TARGET       where the pack goes, cargo's target directory
# LIBRARY      the directory of the release library
set -euo pipefail
cd "$(dirname "$0")/../.."

pack=$TARGET/gpu-pack
limit=$((60 * 1000 * 1000)) # bytes of the archive
newest_libc=2.35            # that programs may need: of a system that is old enough

# The executables in cargo's messages.
executables() {
  sed -n 's/.*"reason":"compiler-artifact".*"executable":"\([^"]*\)".*/\1/p'
}

# Copies programs without the suffix of their file names, and without debug information.
take() {
  local path name
  while read -r path; do
    name=$(basename "$path")
    strip --strip-debug -o "$pack/bin/$1/${name%-*}" "$path"
  done
}

rm -rf "$pack" "$pack.tar.xz"
mkdir -p "$pack"/bin/{tests,benches,examples} "$pack"/{lib,images,tests,examples,tools}

# Tests that can run on a device declare it at their root.
tests=()
for file in $(grep -l '^mod device;' tests/*.rs); do
  tests+=(--test "$(basename "$file" .rs)")
done
messages=$("$CARGO" test --no-run --message-format=json "${tests[@]}")
executables <<< "$messages" | take tests
"$CARGO" bench --no-run --message-format=json --bench cuda_draft --bench cuda_kinds \
  --bench cuda_verify | executables | take benches

# What the build made of the kernels; without an nvcc there are only the sources, which the library
# compiles itself.
output=$(sed -n 's/.*"reason":"build-script-executed".*libspeculators.*"out_dir":"\([^"]*\)".*/\1/p' \
  <<< "$messages" | tail -n 1)
cp -r kernels "$pack/"
find "$output" -name '*.fatbin' -exec cp {} "$pack/images/" \;
[ -n "$(ls "$pack/images")" ] || echo "gpu-pack: no nvcc was found, kernels are compiled over there"

# C programs, for any x86-64 processor beside which there is such a GPU.
strip --strip-debug -o "$pack/lib/libspeculators.so.1" "$LIBRARY/libspeculators.so"
"$MAKE" --silent -C examples/c generate verify_only cuda_graph BUILD="$TARGET/gpu-examples" \
  CFLAGS="-O3 -march=x86-64-v3" SPECULATORS_LIB="$LIBRARY" RPATH='$$ORIGIN/../../lib'
cp "$TARGET"/gpu-examples/{generate,verify_only,cuda_graph} "$pack/bin/examples/"

cp -r include README.md LICENSE "$pack/"
cp -r examples/models examples/c "$pack/examples/"
cp -r tests/golden "$pack/tests/"
cp -r tools/gpu "$pack/tools/"
commit=$(git rev-parse HEAD 2> /dev/null || echo unknown)
[ -z "$(git status --porcelain 2> /dev/null)" ] || commit+=" with changes"
echo "$commit" > "$pack/commit"
chmod -R u+w "$pack"

needed=$(find "$pack/bin" "$pack/lib" -type f -exec objdump -T {} + | grep -o 'GLIBC_[0-9.]*' |
  sed 's/GLIBC_//' | sort -Vu | tail -n 1)
if [ "$(printf '%s\n' "$needed" "$newest_libc" | sort -V | tail -n 1)" != "$newest_libc" ]; then
  echo "gpu-pack: expected programs for glibc $newest_libc, found one that needs $needed" >&2
  exit 1
fi

# All programs have the compiled kernels in them: the dictionary reaches from each to the one before.
tar -C "$TARGET" --owner=0 --group=0 -cf - gpu-pack |
  xz --threads=0 --lzma2=preset=6,dict=32MiB > "$pack.tar.xz"
size=$(stat -c %s "$pack.tar.xz")
echo "gpu-pack: $pack.tar.xz, $((size / 1000)) kB, $commit, needs glibc $needed"
if [ "$size" -gt "$limit" ]; then
  echo "gpu-pack: expected at most $limit bytes" >&2
  exit 1
fi
