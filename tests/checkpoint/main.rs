//! Opening checkpoints: every spelling of a sound one, what releases of the format got wrong, every way in
//! which one can be damaged, and the reference checkpoints.

mod damage;
mod fixture;
mod golden;
mod kinds;
mod quirks;
mod spellings;
