"""Parses the header with cffi's parser, as foreign function interfaces of other languages do."""

import re
import sys

import cffi


def declarations(header: str) -> str:
    """The C part: no preprocessor lines, nothing that is only for C++ or for DLPack."""
    kept, skipping = [], 0
    for line in header.splitlines():
        if re.match(r"#if(def __cplusplus| defined\(DLPACK)", line):
            skipping += 1
        elif skipping and line.startswith("#endif"):
            skipping -= 1
        elif not skipping and not line.startswith("#"):
            kept.append(line)
    return "\n".join(kept)


def main(path: str) -> None:
    """Fails if the parser does not know every function and struct that the header declares."""
    with open(path, encoding="utf-8") as file:
        header = file.read()
    ffi = cffi.FFI()
    ffi.cdef(declarations(header))
    structs = re.findall(r"^typedef struct (\w+) \{", header, re.MULTILINE)
    for name in structs:
        if ffi.sizeof(name) <= 0 or not ffi.typeof(name).fields:
            sys.exit(f"{path}: {name}: expected fields, found none")
    functions = set(re.findall(r"^\w[\w ]*[ *](spec_\w+)\(", header, re.MULTILINE))
    functions.discard("spec_tensor_from_dlpack")
    parsed = {name.split(" ", 1)[1] for name in ffi._parser._declarations if name.startswith("function ")}
    if functions != parsed:
        sys.exit(f"{path}: functions that only one side knows: {sorted(functions ^ parsed)}")
    print(f"{path}: {len(structs)} structs, {len(functions)} functions")


if __name__ == "__main__":
    main(sys.argv[1])
