//! The manual: what was decided and why, and what is not promised. Prose only.

#[doc = include_str!("manual/decisions.md")]
pub mod decisions {}
