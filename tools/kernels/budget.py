#!/usr/bin/env python3
"""Compares what the kernels need of a multiprocessor with what they may need.

usage: budget.py check|record IMAGES

IMAGES is the directory where the build leaves what the compiler said of each module. `check` fails if a
kernel spills registers, has a stack or uses local memory, or needs more than kernels/budget.txt grants;
`record` writes that file anew. Its columns are the kernel, the threads of a block, the bytes of static
shared memory, and the registers of a thread on each device that is compiled for.
"""

import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUDGET = PROJECT / "kernels" / "budget.txt"
TABLE = PROJECT / "src" / "backend" / "cuda" / "launch.rs"

FUNCTION = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
PROPERTIES = re.compile(r"Function properties for (\S+)")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
LOCAL = re.compile(r"(\d+) bytes lmem")
# Name: "module", "function", threads, shared;
ENTRY = re.compile(r'^\s*\w+: "(\w+)", "(\w+)", (\d+), \w+;$', re.MULTILINE)


def kernels():
    """The module and the threads of each kernel, from the table of the launch code."""
    entries = ENTRY.findall(TABLE.read_text())
    if not entries:
        sys.exit(f"{TABLE}: expected a table of kernels")
    return {function: (module, int(threads)) for module, function, threads in entries}


def read_log(log, needs, problems):
    """Adds what a module's kernels need: {kernel: {device: (registers, shared bytes)}}."""
    kernel = device = function = None
    for line in log.read_text().splitlines():
        if match := FUNCTION.search(line):
            kernel, device = match.groups()
        elif match := PROPERTIES.search(line):
            function = match.group(1)
        elif match := MEMORY.search(line):
            if any(int(number) for number in match.groups()):
                problems.append(f"{function} on {device}: {line.strip()}")
        elif match := USED.search(line):
            shared, local = SHARED.search(line), LOCAL.search(line)
            if local and int(local.group(1)):
                problems.append(f"{kernel} on {device}: {local.group(0)}")
            needs.setdefault(kernel, {})[device] = (
                int(match.group(1)),
                int(shared.group(1)) if shared else 0,
            )


def measured(images, problems):
    """The rows of the budget as the kernels are now, with the devices as the first row."""
    needs = {}
    table = kernels()
    for module in sorted({module for module, _ in table.values()}):
        log = images / f"{module}.log"
        if not log.exists():
            sys.exit(f"{log}: expected what the compiler said; was the library built by an nvcc?")
        read_log(log, needs, problems)
    for kernel in sorted(needs.keys() ^ table.keys()):
        problems.append(f"{kernel}: not both compiled and in the table of {TABLE.name}")
    devices = sorted({device for of in needs.values() for device in of}, key=number)
    rows = {}
    for kernel in sorted(needs.keys() & table.keys()):
        of = needs[kernel]
        registers = [of[device][0] if device in of else 0 for device in devices]
        rows[kernel] = [table[kernel][1], max(shared for _, shared in of.values()), *registers]
    return devices, rows


def number(device):
    """Devices in the order of their numbers."""
    return int(re.search(r"\d+", device).group(0))


def read_budget():
    """The devices and the rows of the budget."""
    lines = [line.split() for line in BUDGET.read_text().splitlines() if line[:1] not in ("", "#")]
    return lines[0][3:], {name: [int(value) for value in values] for name, *values in lines[1:]}


def compare(devices, rows, problems):
    """Reports what is above the budget, or not in it."""
    budget_devices, budget = read_budget()
    if devices != budget_devices:
        problems.append(f"expected the devices {budget_devices}, found {devices}")
        return
    columns = ["threads", "bytes of static shared memory", *(f"registers on {d}" for d in devices)]
    for kernel in sorted(rows.keys() ^ budget.keys()):
        problems.append(f"{kernel}: not both compiled and in {BUDGET.name}")
    for kernel in sorted(rows.keys() & budget.keys()):
        for column, found, granted in zip(columns, rows[kernel], budget[kernel]):
            if found > granted or (column == "threads" and found != granted):
                problems.append(f"{kernel}: expected at most {granted} {column}, found {found}")


def write(devices, rows):
    """Writes the budget."""
    table = [["kernel", "threads", "shared", *devices]]
    table += [[kernel, *map(str, values)] for kernel, values in rows.items()]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "# What each kernel may need: threads of a block, bytes of static shared memory, and registers of",
        "# a thread on each device. `make kernels` checks it, `make kernels-record` writes it.",
        "",
    ]
    for row in table:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    BUDGET.write_text("\n".join(lines) + "\n")


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("check", "record"):
        sys.exit(__doc__)
    problems = []
    devices, rows = measured(Path(sys.argv[2]), problems)
    if sys.argv[1] == "check":
        compare(devices, rows, problems)
    if problems:
        sys.exit("kernels:\n  " + "\n  ".join(problems) + f"\n{len(problems)} problems")
    if sys.argv[1] == "record":
        write(devices, rows)
    print(f"kernels: {len(rows)} within their budget on {' '.join(devices)}")


main()
