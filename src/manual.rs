//! The manual: what was decided and why, and what is not promised. Prose only.

#[doc = include_str!("manual/architecture.md")]
pub mod architecture {}

#[doc = include_str!("manual/boards.md")]
pub mod boards {}

#[doc = include_str!("manual/c_library.md")]
pub mod c_library {}

#[doc = include_str!("manual/control.md")]
pub mod control {}

#[doc = include_str!("manual/decisions.md")]
pub mod decisions {}

#[doc = include_str!("manual/images.md")]
pub mod images {}

#[doc = include_str!("manual/int8.md")]
pub mod int8 {}

#[doc = include_str!("manual/kiosk.md")]
pub mod kiosk {}

#[doc = include_str!("manual/limits.md")]
pub mod limits {}

#[doc = include_str!("manual/memory.md")]
pub mod memory {}

#[doc = include_str!("manual/prompts.md")]
pub mod prompts {}

#[doc = include_str!("manual/providers.md")]
pub mod providers {}

#[doc = include_str!("manual/python.md")]
pub mod python {}

#[doc = include_str!("manual/recipes.md")]
pub mod recipes {}

#[doc = include_str!("manual/samplers.md")]
pub mod samplers {}

#[doc = include_str!("manual/security.md")]
pub mod security {}

#[doc = include_str!("manual/server.md")]
pub mod server {}
