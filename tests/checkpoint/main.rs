//! Opening checkpoints: every spelling of a sound one, every way in which one can be damaged, and
//! the reference checkpoints.

mod damage;
mod fixture;
mod golden;
mod kinds;
mod spellings;
