//! The plans a communicator has used lately, so that a repeated call finds its plan by comparing
//! keys.
//!
//! Owns at most [`CAPACITY`] plans, the last used in front: a loop that repeats one call finds its
//! plan at the first comparison. A hit allocates nothing and counts nothing. A plan also depends on
//! which ranks share a host, which a [`Key`] does not say: one cache serves one communicator.

use std::sync::Arc;

use super::{Key, Plan};

/// The most plans kept. A training step uses a handful; rooted calls with a changing root need one
/// for each.
pub const CAPACITY: usize = 64;

/// Plans by key, the last used in front.
#[derive(Debug)]
pub struct Cache {
    plans: Vec<Arc<Plan>>,
}

impl Default for Cache {
    fn default() -> Self {
        Self::new()
    }
}

impl Cache {
    /// An empty cache, with room for all it may hold.
    #[must_use]
    pub fn new() -> Self {
        Self { plans: Vec::with_capacity(CAPACITY) }
    }

    /// The plan for `key`: kept, or from `make` and kept from now on in place of the one that was
    /// not used for longest. `None` when `make` has none.
    pub fn get_or_make(
        &mut self,
        key: &Key,
        make: impl FnOnce() -> Option<Plan>,
    ) -> Option<&Arc<Plan>> {
        if let Some(at) = self.plans.iter().position(|plan| plan.key == *key) {
            self.plans[..=at].rotate_right(1);
        } else {
            let plan = make()?;
            debug_assert_eq!(plan.key, *key, "a plan is made for the key it is asked for");
            self.plans.truncate(CAPACITY - 1);
            self.plans.insert(0, Arc::new(plan));
        }
        self.plans.first()
    }

    /// How many plans are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plans.len()
    }

    /// Whether no plan is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plans.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::samples;
    use crate::types::Rank;

    fn get(cache: &mut Cache, rank: u32) -> (Arc<Plan>, bool) {
        let plan = samples::ring(100, rank);
        let mut made = false;
        let key = plan.key.clone();
        let found = cache.get_or_make(&key, || {
            made = true;
            Some(plan)
        });
        (Arc::clone(found.expect("made or kept")), made)
    }

    #[test]
    fn a_hit_gives_the_same_plan() {
        let mut cache = Cache::new();
        let (first, made) = get(&mut cache, 3);
        assert!(made);
        assert!(get(&mut cache, 4).1);
        let (again, made) = get(&mut cache, 3);
        assert!(!made && Arc::ptr_eq(&first, &again));
        assert_eq!(again.key.rank, Rank(3));
    }

    #[test]
    fn the_longest_unused_plan_goes() {
        let mut cache = Cache::new();
        let capacity = u32::try_from(CAPACITY).unwrap();
        for rank in 0..capacity {
            assert!(get(&mut cache, rank).1);
        }
        let room = cache.plans.capacity();
        assert!(!get(&mut cache, 0).1, "still there, and now in front");
        assert!(get(&mut cache, capacity).1);
        assert_eq!((cache.len(), cache.plans.capacity()), (CAPACITY, room));
        assert!(!get(&mut cache, 0).1);
        assert!(get(&mut cache, 1).1, "rank 1 was unused for longest");
    }

    #[test]
    fn no_plan_is_not_kept() {
        let mut cache = Cache::default();
        assert!(cache.get_or_make(&samples::ring(3, 0).key, || None).is_none());
        assert!(cache.is_empty());
    }
}
