//! RDMA in a build without its bindings: nobody has any.

use std::os::fd::BorrowedFd;

use crate::engine::link::{Rx, Tx, Window};
use crate::error::Result;

/// Nobody has one.
#[derive(Debug)]
pub(crate) enum RdmaTx {}

/// Nobody has one.
#[derive(Debug)]
pub(crate) enum RdmaRx {}

/// Nobody has one.
#[derive(Clone, Debug)]
pub(crate) enum Launched {}

/// Nobody has one.
pub(crate) type RsocketTx = RdmaTx;

/// Nobody has one.
pub(crate) type RsocketRx = RdmaRx;

/// Nobody has one.
#[derive(Clone, Debug)]
pub(crate) enum Opened {}

/// Both ends of a lane.
pub(crate) fn ends(launched: &Launched, _: usize, _: usize) -> (RdmaTx, RdmaRx) {
    match *launched {}
}

/// Both ends of a lane.
pub(crate) fn ends_of(opened: &Opened, _: usize, _: usize) -> (RsocketTx, RsocketRx) {
    match *opened {}
}

/// What both do the same.
macro_rules! nobodys {
    ($($name:ident),+) => {
        $(impl $name {
            pub(crate) fn may_sleep(&self) -> bool {
                match *self {}
            }

            pub(crate) fn wake(&self) {
                match *self {}
            }

            pub(crate) fn watch(&self) {
                match *self {}
            }

            pub(crate) fn add_to(&self, _: impl FnMut(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
                match *self {}
            }

            #[cfg(test)]
            pub(crate) fn copied(&self) -> u64 {
                match *self {}
            }

            pub(crate) fn cut(&self) {
                match *self {}
            }
        })+
    };
}

nobodys!(Launched, Opened);

impl Opened {
    pub(crate) unsafe fn register(&self, _: *mut u8, _: usize) {
        match *self {}
    }

    pub(crate) fn forget(&self, _: *mut u8) {
        match *self {}
    }
}

impl Launched {
    pub(crate) unsafe fn register(&self, _: *mut u8, _: usize) -> Result<()> {
        match *self {}
    }

    pub(crate) fn forget(&self, _: *mut u8) -> bool {
        match *self {}
    }

    pub(crate) fn cover(&self, _: *const u8, _: usize, _: bool) {
        match *self {}
    }
}

// SAFETY: there is none.
unsafe impl Tx for RdmaTx {
    fn window(&mut self) -> Result<Window> {
        match *self {}
    }

    fn commit(&mut self, _: usize) -> Result<()> {
        match *self {}
    }

    unsafe fn write(&mut self, _: *const u8, _: usize) -> Result<usize> {
        match *self {}
    }

    fn end(&mut self) -> Result<()> {
        match *self {}
    }

    fn flush(&mut self) -> Result<bool> {
        match *self {}
    }
}

// SAFETY: there is none.
unsafe impl Rx for RdmaRx {
    fn peek(&mut self, _: usize) -> Result<Window> {
        match *self {}
    }

    fn release(&mut self, _: usize) {
        match *self {}
    }

    unsafe fn read(&mut self, _: *mut u8, _: usize) -> Result<usize> {
        match *self {}
    }

    fn end(&mut self) {
        match *self {}
    }
}
