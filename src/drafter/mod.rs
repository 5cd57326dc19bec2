//! How each method of speculation turns a committed context into draft tokens.

pub mod block;
pub mod sequential;
