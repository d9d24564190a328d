//! What two builds must have in common to share segments: where things lie in them, and which of
//! them a call uses. All of it is in one number, which stands in every segment's header. Ranks
//! whose numbers differ do not share memory; they send messages, as ranks of two hosts do.

use crate::call::HEAD_BYTES;
use crate::engine::area::{PAGE, PAGES, TIGHT_PAGES};
use crate::engine::flat::PLACES_BYTES;
use crate::engine::lane::TILE_PHASES;
use crate::engine::link::{
    AHEAD, AREA_BYTES, FLAT_BYTES, NOTICE_WORDS, NOTICES, PLACE_WORDS, STAGE_BYTES, area_room,
};
use crate::engine::wires::FABRIC_LANES;
use crate::link::board::ROW;
use crate::link::gift::{GIFT_BYTES, GIFT_MAGIC};
use crate::link::mem::RING_BYTES;
use crate::link::ring::CONTROL_BYTES;
use crate::link::shm::SEGMENT;

/// Grows when what stands in a segment means something else in the same place.
const MEANING: usize = 1;

/// Of segments of this build.
#[expect(clippy::cast_possible_truncation, reason = "a page is small")]
pub(crate) const LAYOUT: u32 = digest(&[
    &[MEANING, AHEAD, NOTICES, NOTICE_WORDS, PLACE_WORDS, HEAD_BYTES, TILE_PHASES],
    &[FLAT_BYTES, STAGE_BYTES, PLACES_BYTES, AREA_BYTES, area_room(2), area_room(5), area_room(9)],
    &[PAGE as usize, PAGES, TIGHT_PAGES],
    &[FABRIC_LANES, CONTROL_BYTES, RING_BYTES, GIFT_MAGIC as usize, GIFT_BYTES],
    &ROW,
    &SEGMENT,
]);

/// FNV-1a over the numbers' bytes, folded: numbers that differ in one place differ in it.
const fn digest(lists: &[&[usize]]) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut list = 0;
    while list < lists.len() {
        let mut at = 0;
        while at < lists[list].len() {
            let bytes = lists[list][at].to_le_bytes();
            let mut byte = 0;
            while byte < bytes.len() {
                hash = (hash ^ bytes[byte] as u64).wrapping_mul(0x100_0000_01b3);
                byte += 1;
            }
            at += 1;
        }
        list += 1;
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    let folded = (hash ^ hash >> 32) as u32;
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_that_differs_gives_another_layout() {
        let plain = [32, 64, 10, 2 << 20];
        let of = |numbers: &[usize]| digest(&[numbers, &[7]]);
        for at in 0..plain.len() {
            for change in [1, 16, 1 << 19] {
                let mut other = plain;
                other[at] += change;
                assert_ne!(of(&other), of(&plain), "{at} {change}");
            }
        }
        assert_ne!(of(&[64, 32, 10, 2 << 20]), of(&plain));
    }
}
