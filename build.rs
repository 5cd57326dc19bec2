//! Gives the shared library the name under which programs find it at run time. The number in it is
//! the major number of the ABI.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/capi/version.rs");
    let major = abi_version() / 1000;
    let name = match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd" | "netbsd" | "openbsd") => {
            format!("-Wl,-soname,libspeculators.so.{major}")
        }
        Ok("macos") => format!("-Wl,-install_name,@rpath/libspeculators.{major}.dylib"),
        _ => return,
    };
    println!("cargo:rustc-cdylib-link-arg={name}");
}

/// `SPEC_ABI_VERSION`, which is stated in one place only.
fn abi_version() -> u32 {
    let source = include_str!("src/capi/version.rs");
    let (_, value) = source.split_once("SPEC_ABI_VERSION: i32 = ").expect("the constant is there");
    let (value, _) = value.split_once(';').expect("the constant ends");
    value.parse().expect("the constant is a number")
}
