//! Shared libraries that are part of this process.

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Their files.
pub(crate) fn libraries() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    // SAFETY: the function is called with the list's address, before this returns.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut found).cast()) };
    found
}

unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, list: *mut c_void) -> c_int {
    // SAFETY: the loader gives a valid record; the list is that of `libraries`, which nobody else
    // uses meanwhile.
    let (name, list) = unsafe { ((*info).dlpi_name, &mut *list.cast::<Vec<PathBuf>>()) };
    if !name.is_null() {
        // SAFETY: a name of the loader's, NUL-terminated.
        let name = unsafe { CStr::from_ptr(name) };
        list.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
    }
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_c_library_is_among_them() {
        let libc = |path: &std::path::PathBuf| path.to_string_lossy().contains("libc.so");
        assert!(super::libraries().iter().any(libc));
    }
}
