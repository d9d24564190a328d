//! The version, as C sees it.

use std::ffi::c_int;

/// Major version of this header.
pub const UNISONO_VERSION_MAJOR: c_int = 0;
/// Minor version of this header. Before 1.0 ranks, header and library must share it.
pub const UNISONO_VERSION_MINOR: c_int = 1;
/// Patch version of this header.
pub const UNISONO_VERSION_PATCH: c_int = 0;

/// major * 10000 + minor * 100 + patch of the library that runs.
#[unsafe(no_mangle)]
pub extern "C" fn unisono_version() -> c_int {
    UNISONO_VERSION_MAJOR * 10_000 + UNISONO_VERSION_MINOR * 100 + UNISONO_VERSION_PATCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_version_of_the_crate() {
        let header = [UNISONO_VERSION_MAJOR, UNISONO_VERSION_MINOR, UNISONO_VERSION_PATCH];
        assert_eq!(header.map(|n| n.to_string()).join("."), env!("CARGO_PKG_VERSION"));
        assert_eq!(unisono_version(), 100);
    }
}
