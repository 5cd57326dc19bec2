//! A bar for what takes a while, where a person looks at it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// What takes no longer than this needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes that are written.
    Bytes,
    /// Texts that are decoded.
    Texts,
}

/// A bar that appears when the work takes a second, on standard error and only on a terminal.
pub struct Bar {
    unit: Unit,
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub fn new(unit: Unit) -> Self {
        Self { unit, begun: Instant::now(), bar: None }
    }

    /// So many of all are done.
    pub fn show(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.begun.elapsed() < PATIENCE {
            return;
        }
        let unit = self.unit;
        let bar = self.bar.get_or_insert_with(|| {
            let style = match unit {
                Unit::Bytes => "{bar:40} {bytes} of {total_bytes}, {eta} left",
                Unit::Texts => "{bar:40} {pos} of {len} texts, {eta} left",
            };
            let style = ProgressStyle::with_template(style);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
                .with_style(style)
        });
        bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
