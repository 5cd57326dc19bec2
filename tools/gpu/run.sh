#!/usr/bin/env bash
# Runs the tests, the examples, the sanitizers and the benchmarks on a machine with a GPU, in less
# than ten minutes, and writes down what came out. It needs what `make gpu-pack` made and nothing
# else: neither Rust nor a network. From the unpacked pack, or from a checkout of the repository that
# has target/gpu-pack.tar.xz or target/gpu-pack:
#
#   tools/gpu/run.sh                    on the GPU of this machine
#   tools/gpu/run.sh --simulate DIR     on the simulator in DIR, in small sizes
#
# OUT      where results.json, results.md and a log per step go; ./gpu-results if it is not set
# KERNELS  `rebuild`: compiles the kernels with the nvcc of this machine, and everything uses those
# ONLY     the parts to run, of: tests examples torch benches sanitizers profiler; all if it is not set
# TESTS    the test programs to run; all if it is not set
# SECONDS_IN_ALL  when to stop, 570 if it is not set
#
# Ends with 1 if a step failed. A step that cannot run here is skipped and says why.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
simulator=
while [ $# -gt 0 ]; do
  case $1 in
    --simulate) simulator=$(cd "$2" && pwd) && shift 2 || exit 2 ;;
    *) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "$0"; exit 2 ;;
  esac
done

out=${OUT:-./gpu-results}
mkdir -p "$out/logs" "$out/scratch"
out=$(cd "$out" && pwd)
rm -f "$out"/*.figures "$out"/logs/*
steps=$out/steps.tsv
: > "$steps"
end=$((SECONDS + ${SECONDS_IN_ALL:-570}))

# ---- The pack ----

pack=$root
if [ ! -d "$pack/bin" ]; then
  pack=$root/target/gpu-pack
  archive=$pack.tar.xz
  if [ -f "$archive" ] && { [ ! -d "$pack" ] || [ "$archive" -nt "$pack" ]; }; then
    tar -C "$out/scratch" -xJf "$archive"
    pack=$out/scratch/gpu-pack
  fi
fi
if [ ! -d "$pack/bin" ]; then
  echo "run.sh: expected target/gpu-pack.tar.xz, which make gpu-pack makes" >&2
  exit 2
fi

export RUST_BACKTRACE=1 SPEC_TEST_DEVICE=cuda
export SPEC_TEST_ROOT=$pack SPEC_TEST_SCRATCH=$out/scratch SPECULATORS_GOLDEN=$pack/tests/golden
quick=()
if [ -n "$simulator" ]; then
  export LD_LIBRARY_PATH=$simulator${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  quick=(--quick)
fi

# ---- What comes out ----

string() { # as JSON
  local text
  text=$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g')
  printf '"%s"' "$text"
}

device=unknown driver=unknown
name_device() {
  local facts
  if [ -n "$simulator" ]; then
    device="a simulator"
  elif facts=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader -i 0 2> /dev/null); then
    device=${facts%, *} driver=${facts##*, }
  fi
}

figures() { cat "$out"/*.figures 2> /dev/null; }

write_json() {
  local first=1 name status seconds detail
  {
    printf '{\n "device": %s,\n "driver": %s,\n' "$(string "$device")" "$(string "$driver")"
    printf ' "commit": %s,\n' "$(string "$(cat "$pack/commit")")"
    printf ' "simulated": %s,\n' "$([ -n "$simulator" ] && echo true || echo false)"
    printf ' "kernels": "%s",\n "steps": [' "${SPEC_TEST_KERNELS:-of the library}"
    while IFS=$'\t' read -r name status seconds detail; do
      [ $first = 1 ] || printf ','
      first=0
      printf '\n  {"name": %s, "status": "%s", "seconds": %s, "detail": %s}' \
        "$(string "$name")" "$status" "$seconds" "$(string "$detail")"
    done < "$steps"
    printf '\n ],\n "figures": [\n'
    figures | sed -e 's/^/  /' -e '$!s/$/,/'
    printf ' ]\n}\n'
  } > "$out/results.json.new" && mv "$out/results.json.new" "$out/results.json"
}

write_table() {
  local name status seconds detail log
  {
    printf '### %s\n\nDriver %s, commit %s.\n' "$device" "$driver" "$(cat "$pack/commit")"
    [ -z "$simulator" ] || printf '\n**No figure here is a measurement: a simulator ran it.**\n'
    for log in "$out"/logs/bench.*.log; do
      [ ! -f "$log" ] || { echo && cat "$log"; }
    done
    printf '\n| step | | seconds | |\n|---|---|---|---|\n'
    while IFS=$'\t' read -r name status seconds detail; do
      printf '| %s | %s | %s | %s |\n' "$name" "$status" "$seconds" "${detail//|/\\|}"
    done < "$steps"
  } > "$out/results.md"
}

# ---- Steps ----

record() { # name, status, seconds, detail
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf '%s' "$4" | tr '\n\t' '  ')" >> "$steps"
  printf '%-9s %6ss  %s  %s\n' "$2" "$3" "$1" "$4"
  write_json
}

skip() { record "$1" skipped 0 "$2"; }

log_of() { printf '%s/logs/%s.log' "$out" "${1//[ \/]/.}"; }

# Runs a command or an exported function as a step with a log of its own: name, the most seconds,
# command. Fails if that did.
step() {
  local name=$1 most=$2 left=$((end - SECONDS)) log start seconds code status detail
  shift 2
  log=$(log_of "$name")
  if [ "$left" -lt 5 ]; then
    skip "$name" "no time left"
    return 0
  fi
  start=$EPOCHREALTIME
  timeout --kill-after=5 "$((most < left ? most : left))" bash -c '"$@"' bash "$@" > "$log" 2>&1
  code=$?
  seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
  detail=$(grep -E '^test result|ERROR SUMMARY|^skipped' "$log" | tail -n 1)
  case $code in
    0) status=passed ;;
    3) status=skipped ;;
    124 | 137) status=timeout ;;
    *) status=failed detail="exit $code${detail:+, $detail}" ;;
  esac
  record "$name" "$status" "$seconds" "$detail"
  [ $status = passed ] || [ $status = skipped ]
}

wants() { [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $1 "* ]]; }

have() { command -v "$1" > /dev/null; }

facts() {
  date -u
  cat "$pack/commit"
  uname -a
  if [ -n "$simulator" ]; then echo "simulator: $simulator"; else nvidia-smi; fi
  ! have nvcc || nvcc --version
  ! have compute-sanitizer || compute-sanitizer --version
  ! have ncu || ncu --version
  ! have python3 || python3 -c 'import torch; print("torch", torch.__version__)'
  return 0
}

# Compiles all kernels for this device.
rebuild_kernels() {
  local directory=$1 code source jobs=() job
  code=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 | tr -d .) || return 1
  case $code in 90 | 100) code+=a ;; esac
  mkdir -p "$directory"
  for source in "$pack"/kernels/*.cu; do
    nvcc -std=c++17 -cubin "-gencode=arch=compute_$code,code=sm_$code" \
      -o "$directory/$(basename "$source" .cu).cubin" "$source" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || return 1
  done
}

# A test program that failed as a whole: which of its tests fail when they run alone? A fault of the
# device spoils all later work of a process.
run_alone() {
  local program=$1 name failed=0
  for name in $("$program" --list 2> /dev/null | sed -n 's/: test$//p'); do
    if timeout 60 "$program" --exact "$name" > "$out/scratch/alone.log" 2>&1; then
      echo "passed $name"
    else
      failed=1
      echo "FAILED $name"
      cat "$out/scratch/alone.log"
    fi
  done
  return $failed
}

run_tests() {
  local program name
  for program in "$pack"/bin/tests/*; do
    name=$(basename "$program")
    [ -z "${TESTS:-}" ] || [[ " $TESTS " == *" $name "* ]] || continue
    name=tests/$name
    step "$name" 120 "$program" --test-threads=1 || [ -n "$simulator" ] ||
      step "$name alone" 60 run_alone "$program"
  done
}

# A C example, on the device unless the arguments say otherwise.
example() {
  local name=$1
  shift
  cd "$pack" && "bin/examples/$name" --backend cuda --tokens 48 \
    ${SPEC_TEST_KERNELS:+--kernels "$SPEC_TEST_KERNELS"} "$@"
}

# The text of `generate`, without what depends on the machine's speed.
text_of() {
  example generate "$@" > "$out/scratch/text" && sed '/^tokens per target pass/,$d' "$out/scratch/text"
}

texts_are_equal() {
  local cpu cuda
  cpu=$(text_of --backend cpu "$@") && cuda=$(text_of "$@") && diff <(echo "$cpu") <(echo "$cuda")
}

run_examples() {
  step "examples/generate" 60 example generate
  step "examples/generate, text of the CPU" 60 texts_are_equal
  step "examples/generate, batch" 60 texts_are_equal --batch 3 --drafts 2
  step "examples/generate, trees" 60 texts_are_equal --tree dynamic --batch 3
  step "examples/verify_only" 60 example verify_only
  step "examples/cuda_graph" 60 example cuda_graph
  step "examples/cuda_graph, sampled" 60 example cuda_graph --batch 13 --temperature 0.8
}

run_torch() {
  if ! have python3; then
    skip "torch" "no python3"
  elif [ -n "$simulator" ]; then
    skip "torch" "a simulator cannot run it"
  else
    step "torch" 90 python3 "$here/torch_verify.py" --json "$out/torch.figures"
  fi
}

run_benches() {
  local torch=()
  [ ! -s "$out/torch.figures" ] || torch=(--torch "$out/torch.figures")
  step "bench verify" 120 "$pack/bin/benches/cuda_verify" "${quick[@]}" "${torch[@]}" \
    --json "$out/verify.figures"
  step "bench draft" 150 "$pack/bin/benches/cuda_draft" "${quick[@]}" --json "$out/draft.figures"
  step "bench kinds" 120 "$pack/bin/benches/cuda_kinds" "${quick[@]}" --json "$out/kinds.figures"
}

# Short tests that together launch every kernel.
short_tests=(
  "cuda_capture"
)

run_sanitizers() {
  local tool test
  for tool in memcheck racecheck initcheck synccheck; do
    for test in "${short_tests[@]}"; do
      # shellcheck disable=SC2086 # a program and its filters
      set -- $test
      if [ -n "$simulator" ]; then
        skip "$tool $1" "a simulator has checks of its own"
      elif ! have compute-sanitizer; then
        skip "$tool $1" "no compute-sanitizer"
      else
        step "$tool $1" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
          "$pack/bin/tests/$1" --test-threads=1 "${@:2}"
      fi
    done
  done
}

# Where the time of the library's first kernels for a large head goes. The benchmark measures the
# bandwidth first, with a kernel of its own.
profile() {
  ncu --clock-control none --launch-count 24 --kill yes --kernel-name 'regex:^(?!read_once)' \
    --section SpeedOfLight --section Occupancy --section LaunchStats \
    "$pack/bin/benches/cuda_draft" | tee "$out/scratch/profile"
  grep -q Duration "$out/scratch/profile"
}

run_profiler() {
  if [ -n "$simulator" ]; then
    skip "ncu" "a simulator has no counters"
  elif ! have ncu; then
    skip "ncu" "no ncu"
  else
    step "ncu" 60 profile
  fi
}

export pack out simulator
export -f have facts rebuild_kernels run_alone example text_of texts_are_equal profile

name_device
step "facts" 30 facts
if [ "${KERNELS:-}" = rebuild ]; then
  if [ -n "$simulator" ] || ! have nvcc; then
    skip "kernels" "needs a GPU and an nvcc"
  elif step "kernels" 120 rebuild_kernels "$out/kernels"; then
    export SPEC_TEST_KERNELS=$out/kernels
  fi
fi
! wants tests || run_tests
! wants examples || run_examples
! wants torch || run_torch
! wants benches || run_benches
! wants sanitizers || run_sanitizers
! wants profiler || run_profiler

rm -rf "$out/scratch"
write_json
write_table
failed=$(awk -F '\t' '$2 == "failed" || $2 == "timeout"' "$steps" | wc -l)
echo "$(wc -l < "$steps") steps, $failed failed: $out/results.json, $out/results.md"
[ "$failed" = 0 ]
