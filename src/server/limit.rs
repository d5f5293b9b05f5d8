//! The limits of the HTTP server, all of them. What exceeds one is refused with a status and a message that names it.

use std::time::Duration;

/// A request's body in bytes: a few images in base64.
pub const BODY_BYTES: usize = 32 << 20;
/// The bodies that are read or worked on at a time, in bytes together.
pub const BODIES_BYTES: usize = 64 << 20;
/// A body in bytes that always finds room.
pub const SMALL_BODY_BYTES: usize = 16 << 10;
/// How long a larger one waits for it.
pub const ROOM_TIME: Duration = Duration::from_secs(10);
/// An uploaded image in bytes, decoded from base64.
pub const IMAGE_BYTES: usize = 24 << 20;
/// A prompt in characters, as OpenAI's.
pub const PROMPT_CHARS: usize = 32_000;
/// Images of one request.
pub const IMAGES: u64 = 16;
/// Fields of a form.
pub const FORM_FIELDS: usize = 64;
/// A form's field that is no file, in bytes.
pub const FORM_TEXT_BYTES: usize = 256 << 10;
/// A request's header in bytes.
pub const HEADER_BYTES: usize = 32 << 10;
/// How long a request's header may take, and how long a connection may stay without a request.
pub const HEADER_TIME: Duration = Duration::from_secs(30);
/// How long the next part of a request's body may take.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// Connections at a time; more wait to be accepted.
pub const CONNECTIONS: usize = 4096;
/// Jobs that are finished and can still be looked up.
pub const FINISHED_JOBS: usize = 64;
/// Images of finished jobs that are kept, in bytes of pixels; the oldest jobs go first, the newest one stays.
pub const FINISHED_BYTES: usize = 64 << 20;
/// A job's own name of its channel, in characters.
pub const CHANNEL_CHARS: usize = 64;
/// Channels whose newest image is kept.
pub const CHANNELS: usize = 16;
/// A side of the image that a panel is sent, in pixels.
pub const PANEL_PX: u32 = 8192;
/// Partial images of one stream, as OpenAI's.
pub const PARTIAL_IMAGES: u64 = 3;
/// A stream of events has at least one line in this time, so that proxies keep it open.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A reply that takes longer begins: status and headers are sent, and spaces before its JSON. Errors until then have their
/// own status.
pub const EARLY_REPLY: Duration = Duration::from_secs(20);
