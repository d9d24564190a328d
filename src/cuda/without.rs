// The types of `ffi/cuda/driver.h` where bindgen could not read it. Its constants are there.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

pub type CUresult = c_uint;
pub type CUdevice = c_int;
pub type CUdeviceptr = c_ulonglong;
pub type CUcontext = *mut c_void;
pub type CUmodule = *mut c_void;
pub type CUfunction = *mut c_void;
pub type CUevent = *mut c_void;
pub type CUstream = *mut c_void;
pub type CUgraph = *mut c_void;
pub type CUgraphNode = *mut c_void;
pub type CUgraphExec = *mut c_void;

#[derive(Clone, Copy, Debug, Default)]
pub struct CUuuid {
    pub bytes: [c_char; 16],
}

#[derive(Clone, Copy, Debug)]
pub struct CUipcMemHandle {
    pub reserved: [c_char; 64],
}

#[derive(Clone, Copy, Debug)]
pub struct CUipcEventHandle {
    pub reserved: [c_char; 64],
}

/// Nobody has one.
pub enum Calls {}
