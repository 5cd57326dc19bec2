//! What tests ask of the simulator that may stand in for the driver. A real driver has none of it.

use super::driver;
use std::ffi::{CStr, CString, c_char, c_int};

/// A function of the simulator; NULL with a real driver.
fn function(name: &CStr) -> *mut libc::c_void {
    driver::primary();
    [c"libcuda.so", c"libcuda.so.1"]
        .into_iter()
        .map(|library| {
            // SAFETY: strings that end with NUL; the driver is loaded already and stays so.
            unsafe {
                match libc::dlopen(library.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) {
                    handle if handle.is_null() => handle,
                    handle => libc::dlsym(handle, name.as_ptr()),
                }
            }
        })
        .find(|function| !function.is_null())
        .unwrap_or_default()
}

/// Whether the driver is the simulator.
pub fn is_present() -> bool {
    !function(c"simt_is_simulator").is_null()
}

/// For tests that need the simulator: false, after saying why, with a real driver.
pub fn is_present_or_skipped(why: &str) -> bool {
    let present = is_present();
    if !present {
        println!("skipped: {why}");
    }
    present
}

/// Changes a setting that the environment has at the start, such as `SIMT_FAIL_ALLOCATION`.
pub fn configure(setting: &str, value: &str) {
    let configure = function(c"simt_configure");
    assert!(!configure.is_null(), "expected the simulator");
    let [setting, value] = [setting, value].map(|text| CString::new(text).expect("no NUL"));
    // SAFETY: the simulator's function of this name has this type.
    let configure: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int =
        unsafe { std::mem::transmute(configure) };
    // SAFETY: strings that end with NUL.
    let known = unsafe { configure(setting.as_ptr(), value.as_ptr()) };
    assert_eq!(known, 1, "{setting:?}: the simulator has no such setting");
}
