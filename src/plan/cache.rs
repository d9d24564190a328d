//! stub
use super::{Key, Plan};
use std::sync::Arc;
/// stub
#[derive(Debug, Default)]
pub struct Cache(Vec<Arc<Plan>>);
impl Cache {
    /// stub
    pub fn find(&mut self, key: &Key) -> Option<Arc<Plan>> {
        self.0.iter().find(|p| &p.key == key).cloned()
    }
    /// stub
    pub fn insert(&mut self, plan: Arc<Plan>) {
        self.0.push(plan);
    }
}
