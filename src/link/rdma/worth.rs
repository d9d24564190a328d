//! From which size on memory is worth registering for the calls that use it.
//!
//! Measured on the card, when connections are made: what it takes to register two sizes gives a
//! fixed part and one for each byte; what is saved is a copy at each end.

use std::time::{Duration, Instant};

use super::pair::PLACE_BYTES;
use super::yard::Card;
use crate::error::Result;
use crate::sys::memory::Pages;

/// A registration is to pay after so many uses.
const USES: u32 = 8;
/// What is measured.
const SMALL: usize = 16 << 10;
const LARGE: usize = 256 << 10;
/// Larger memory than this is not asked about: where it does not pay, nothing does.
const MOST: usize = 16 << 20;

/// The least of three.
fn least(mut one: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        one()?;
        best = best.min(begun.elapsed());
    }
    Ok(best)
}

/// So many bytes and more; `usize::MAX` where it never pays, or cannot be measured.
pub(super) fn cover_bytes(card: &Card) -> usize {
    measure(card).unwrap_or(usize::MAX)
}

fn measure(card: &Card) -> Result<usize> {
    let pages = Pages::new(2 * LARGE)?;
    let at = pages.at().as_ptr();
    // SAFETY: the pages are ours. Written to, they are backed, as a program's are.
    unsafe { at.write_bytes(1, 2 * LARGE) };
    let register = |bytes| {
        // SAFETY: the pages outlive the registration, and nobody has its keys.
        least(|| unsafe { card.domain.register(at, bytes, true) }.map(drop))
    };
    let (small, large) = (register(SMALL)?, register(LARGE)?);
    let copy = least(|| {
        // SAFETY: two halves of the pages.
        unsafe { std::ptr::copy_nonoverlapping(at, at.wrapping_add(LARGE), LARGE) };
        Ok(())
    })?;
    let pays = |bytes: &usize| pays(*bytes, (small, large), copy);
    Ok((0..)
        .map(|step| PLACE_BYTES << step)
        .take_while(|b| *b <= MOST)
        .find(pays)
        .unwrap_or(usize::MAX))
}

/// Whether registering `bytes` pays, where [`SMALL`] and [`LARGE`] bytes take so long, and copying
/// [`LARGE`] bytes does.
fn pays(bytes: usize, (small, large): (Duration, Duration), copy: Duration) -> bool {
    let share = |of: Duration, bytes: usize| of.as_secs_f64() / LARGE as f64 * bytes as f64;
    let slope = large.saturating_sub(small).as_secs_f64() / (LARGE - SMALL) as f64;
    let fixed = (small.as_secs_f64() - slope * SMALL as f64).max(0.0);
    fixed + slope * bytes as f64 <= f64::from(2 * USES) * share(copy, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_cost_pays_from_a_size_on() {
        let micros = Duration::from_micros;
        // 60 us, and 0.1 us for each KiB; a copy of 256 KiB takes 25 us.
        let measured = (micros(62), micros(86));
        assert!(!pays(16 << 10, measured, micros(25)));
        assert!(pays(64 << 10, measured, micros(25)));
        // Where copies are cheaper than each byte's registration, it never does.
        assert!(!pays(MOST, (micros(100), micros(2000)), micros(25)));
    }
}
