//! What operators do with a log, the same for the command line and the admin listener.
//!
//! Works on what both have: a [`wal::Reader`] (of an open log, or of a folder that only lies there) and a
//! [`wal::Wal`]. The types of this module are the JSON that both print: written by one, read by the other.
//!
//! Every look has limits in records, bytes and time, and says where to go on. Knows nothing of HTTP, flags or
//! Kafka.

mod held;
mod import;
mod item;
mod letters;
mod page;
mod standing;

pub use held::{HeldOrder, HeldTopic, HeldTopics, Redirected, RewindOrder, held_topics};
pub use import::{Imported, Items, ItemsError, import};
pub use item::{Header, ITEM_BYTES_MAX, Item, ItemError};
pub use letters::{
    Discarded, Failure, LetterItem, LetterPage, LetterQuery, Letters, Name, Requeued, Selection, State, WholeLetter,
};
pub use page::{Limits, Page, Query, page};
pub use standing::{Lookout, Stage, Standing};
