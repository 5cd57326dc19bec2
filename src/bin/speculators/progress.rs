//! A bar for what takes a while, where a person looks at it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// What takes no longer than this needs no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar that appears when the work takes a second, on standard error and only on a terminal.
pub struct Bar {
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    pub fn new() -> Self {
        Self { begun: Instant::now(), bar: None }
    }

    /// So many bytes of all are written.
    pub fn show(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.begun.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = "{bar:40} {bytes} of {total_bytes}, {eta} left";
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
