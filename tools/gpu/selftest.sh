#!/usr/bin/env bash
# Unpacks a pack where it was not built and runs it on the simulator: selftest.sh ARCHIVE SIMULATOR
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
tar -C "$place" -xJf "$1"
cd "$place"
# All test programs have run on the simulator elsewhere: here it is the pack that is tested.
TESTS="cuda_capture cuda_memory verify_golden" OUT=$place/results gpu-pack/tools/gpu/run.sh --simulate "$2" || {
  tail -n 50 results/logs/*.log
  exit 1
}
for part in tests/ examples/ "bench draft" "bench kinds" "bench verify"; do
  grep -q "\"name\": \"$part.*\"status\": \"passed\"" results/results.json || {
    echo "selftest: expected a step of $part that passed" >&2
    exit 1
  }
done
grep -q '"bench":"cuda_draft"' results/results.json
grep -q '"bench":"cuda_kinds"' results/results.json
if command -v python3 > /dev/null; then
  python3 -m json.tool results/results.json > /dev/null
fi
echo "GPU pack on the simulator: 1 passed"
