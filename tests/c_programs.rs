//! The library as C and C++ programs see it: the header, the exported symbols, the layout of the
//! structs, and hosts that are linked with the shared and with the static library.
//!
//! `CC` and `CXX` name the compilers, `cc` and `c++` if they are not set. With `UPDATE_ABI=1` in the
//! environment, the records in `tests/abi` are written instead of compared.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// What a program that contains the static library needs of the system.
const SYSTEM_LIBRARIES: &[&str] = if cfg!(target_os = "linux") {
    &["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"]
} else {
    &["-lm"]
};

#[derive(Clone, Copy)]
enum Language {
    C99,
    C11,
    Cxx17,
}

impl Language {
    fn compiler(self) -> Command {
        let (variable, default, arguments): (_, _, &[&str]) = match self {
            Self::C99 => ("CC", "cc", &["-std=c99", "-x", "c"]),
            Self::C11 => ("CC", "cc", &["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-x", "c"]),
            Self::Cxx17 => ("CXX", "c++", &["-std=c++17", "-x", "c++"]),
        };
        let mut command =
            Command::new(std::env::var_os(variable).unwrap_or_else(|| default.into()));
        command.args(WARNINGS).arg(format!("-I{}", project("include").display())).args(arguments);
        command
    }
}

#[derive(Clone, Copy)]
enum Library {
    Shared,
    Static,
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c_programs").join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Cargo builds all crate types of the package for its integration tests, next to them.
fn built(file: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(file);
    assert!(path.exists(), "{}: expected a library", path.display());
    path
}

fn shared_library() -> PathBuf {
    built(if cfg!(target_os = "macos") { "libspeculators.dylib" } else { "libspeculators.so" })
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|failure| panic!("{command:?}: {failure}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text.into_owned()
}

/// Compiles `sources` to a program named `name`, linked with the library.
fn link(
    language: Language,
    name: &str,
    sources: &[PathBuf],
    library: Library,
    flags: &[&str],
) -> PathBuf {
    let directory = scratch(name);
    let program = directory.join("program");
    let mut command = language.compiler();
    command.arg(format!("-I{}", project("tests/c").display()));
    command.args(["-g", "-O1"]).args(flags).args(sources).args(["-x", "none"]);
    match library {
        Library::Static => {
            command.arg(built("libspeculators.a"));
        }
        Library::Shared => {
            let link_name = directory.join(shared_library().file_name().unwrap());
            let run_name = directory.join(soname());
            for link in [&link_name, &run_name] {
                let _ = fs::remove_file(link);
                std::os::unix::fs::symlink(shared_library(), link).unwrap();
            }
            command.arg(format!("-L{}", directory.display())).arg("-lspeculators");
            command.arg(format!("-Wl,-rpath,{}", directory.display()));
        }
    }
    run(command.args(SYSTEM_LIBRARIES).arg("-o").arg(&program));
    program
}

fn soname() -> String {
    let major = speculators::capi::SPEC_ABI_VERSION / 1000;
    if cfg!(target_os = "macos") {
        format!("libspeculators.{major}.dylib")
    } else {
        format!("libspeculators.so.{major}")
    }
}

/// The speculator that the programs load, and its verifier.
fn models() -> [PathBuf; 2] {
    ["eagle3", "target"].map(|name| project("examples/models/tiny-python").join(name))
}

fn run_host(program: &Path) {
    let output = run(Command::new(program).args(models()));
    assert!(output.contains(" checks passed, 0 failed"), "{output}");
}

/// Compares `found` with the record at `path`, or writes the record.
fn compare_with_record(path: &str, found: &str) {
    let path = project(path);
    if std::env::var_os("UPDATE_ABI").is_some() {
        fs::write(&path, found).unwrap();
    }
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    let missing: Vec<&str> =
        recorded.lines().filter(|line| !found.lines().any(|other| other == *line)).collect();
    let new: Vec<&str> =
        found.lines().filter(|line| !recorded.lines().any(|other| other == *line)).collect();
    assert!(
        found == recorded,
        "{}: the ABI differs from the record; gone: {missing:#?}, new: {new:#?}",
        path.display()
    );
}

#[test]
fn the_header_compiles_alone_and_twice() {
    for (name, language) in
        [("c99", Language::C99), ("c11", Language::C11), ("c++17", Language::Cxx17)]
    {
        let source = scratch("header").join(format!("{name}.source"));
        fs::write(&source, "#include <speculators.h>\n#include <speculators.h>\n").unwrap();
        run(language.compiler().arg("-fsyntax-only").arg(&source));
    }
}

#[test]
fn abi_symbols_are_the_recorded_ones() {
    let table = if cfg!(target_os = "macos") {
        run(Command::new("nm").args(["-gU"]).arg(shared_library()))
    } else {
        run(Command::new("nm").args(["-D", "--defined-only"]).arg(shared_library()))
    };
    let mut symbols: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    symbols.sort_unstable();
    compare_with_record("tests/abi/symbols.txt", &(symbols.join("\n") + "\n"));
}

#[test]
fn abi_functions_of_the_header_are_exported() {
    let header = fs::read_to_string(project("include/speculators.h")).unwrap();
    let recorded = fs::read_to_string(project("tests/abi/symbols.txt")).unwrap();
    let begins = |line: &&str| line.starts_with(char::is_alphabetic) && line.contains('(');
    let declared = header
        .lines()
        .filter(begins)
        .filter(|line| !["typedef", "static"].iter().any(|word| line.starts_with(word)));
    let mut names: Vec<&str> = declared
        .map(|line| line.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, recorded.lines().collect::<Vec<_>>());
}

#[cfg(target_os = "linux")]
#[test]
fn abi_major_number_is_in_the_name_of_the_shared_library() {
    let dynamic = run(Command::new("readelf").arg("-d").arg(shared_library()));
    let expected = format!("soname: [{}]", soname());
    assert!(dynamic.contains(&expected), "expected {expected}, found {dynamic}");
}

#[cfg(target_pointer_width = "64")]
#[test]
fn abi_layout_is_the_recorded_one() {
    let header = fs::read_to_string(project("include/speculators.h")).unwrap();
    let source = scratch("layout").join("layout.c");
    fs::write(&source, layout_program(&header)).unwrap();
    let program = source.with_file_name("program");
    run(Language::C11.compiler().arg(&source).arg("-o").arg(&program));
    compare_with_record("tests/abi/layout.txt", &run(&mut Command::new(program)));
}

/// A program that prints the value of each constant of the header, and the size, the alignment and
/// the fields of each struct.
fn layout_program(header: &str) -> String {
    let mut prints = String::new();
    let (mut structure, mut field) = (None, String::new());
    for line in header.lines().filter(|line| !line.trim_start().starts_with(['*', '/'])) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (structure, &words[..]) {
            (None, ["#define", name, _]) => {
                prints += &format!("  printf(\"{name} %lld\\n\", (long long){name});\n");
            }
            (None, ["typedef", "struct", name, "{"]) => {
                prints += &format!(
                    "  printf(\"{name} size %zu align %zu\\n\", sizeof({name}), _Alignof({name}));\n"
                );
                structure = Some(*name);
            }
            (Some(_), ["}", ..]) => structure = None,
            (Some(name), _) => {
                field += line;
                if field.ends_with(';') {
                    let field = field_name(&std::mem::take(&mut field)).to_owned();
                    prints += &format!(
                        "  printf(\"{name}.{field} offset %zu size %zu\\n\", \
                         offsetof({name}, {field}), sizeof((({name} *)0)->{field}));\n"
                    );
                }
            }
            _ => {}
        }
    }
    format!(
        "#include <speculators.h>\n#include <stddef.h>\n#include <stdio.h>\n\n\
         int main(void) {{\n{prints}  return 0;\n}}\n"
    )
}

/// The name in a declaration such as `int64_t shape[4];` or `void (*log)(void *user);`.
fn field_name(declaration: &str) -> &str {
    let declarator = match declaration.split_once("(*") {
        Some((_, pointer)) => pointer.split(')').next().unwrap(),
        None => declaration.split(['[', ';']).next().unwrap(),
    };
    declarator.rsplit([' ', '*']).next().unwrap()
}

#[test]
fn a_c_host_works_with_the_shared_library() {
    let source = [project("tests/c/host.c")];
    run_host(&link(Language::C11, "host_shared", &source, Library::Shared, &[]));
}

#[test]
fn a_c_host_works_with_the_static_library() {
    let source = [project("tests/c/host.c")];
    run_host(&link(Language::C11, "host_static", &source, Library::Static, &[]));
}

#[test]
fn a_cpp_host_works_with_the_shared_library() {
    let source = [project("tests/c/host.cpp")];
    run_host(&link(Language::Cxx17, "host_cpp_shared", &source, Library::Shared, &[]));
}

#[test]
fn a_cpp_host_works_with_the_static_library() {
    let source = [project("tests/c/host.cpp")];
    run_host(&link(Language::Cxx17, "host_cpp_static", &source, Library::Static, &[]));
}

/// Memory errors, leaks and undefined behaviour in the host or, where it touches the host's memory
/// through the C library, in the library.
#[test]
fn a_c_host_is_clean_under_the_address_sanitizer() {
    let flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let source = [project("tests/c/host.c")];
    run_host(&link(Language::C11, "host_asan", &source, Library::Static, &flags));
}

#[test]
fn dlpack_tensors_convert_in_c_and_cpp() {
    for (name, language) in [("dlpack_c", Language::C99), ("dlpack_cpp", Language::Cxx17)] {
        let program = scratch(name).join("program");
        let mut command = language.compiler();
        run(command.arg(project("tests/c/dlpack.c")).arg("-o").arg(&program));
        let output = run(&mut Command::new(program));
        assert!(output.contains(" checks passed, 0 failed"), "{output}");
    }
}

#[test]
fn the_decode_loop_of_the_readme_emits_the_text_of_the_target() {
    let readme = fs::read_to_string(project("README.md")).unwrap();
    let mut blocks = readme.split("```c\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks.next().expect("the README has a C block");
    assert!(blocks.next().is_none(), "the README has one C block");
    let source = scratch("readme").join("decode.c");
    fs::write(&source, block).unwrap();
    let sources = [source, project("tests/c/readme_host.c")];
    run_host(&link(Language::C11, "readme", &sources, Library::Shared, &[]));
}

#[test]
fn the_library_says_the_version_of_the_package() {
    let source = scratch("version").join("version.c");
    let program_text = "#include <speculators.h>\n#include <stdio.h>\n\
        int main(void) { puts(spec_version()); return 0; }\n";
    fs::write(&source, program_text).unwrap();
    let program = link(Language::C99, "version", &[source], Library::Shared, &[]);
    let version: &OsStr = env!("CARGO_PKG_VERSION").as_ref();
    assert_eq!(OsStr::new(run(&mut Command::new(program)).trim()), version);
}
