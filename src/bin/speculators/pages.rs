//! Completions for shells, and pages for `man`: what an installation puts in their places.

use crate::output::Output;
use crate::{Exit, Outcome};
use clap::{Args, Command};
use clap_complete::Shell;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// Print the completions of this command for a shell.
///
///   speculators completions bash > /etc/bash_completion.d/speculators
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub fn run(&self, output: &mut Output, mut command: Command) -> Outcome {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "speculators", &mut text);
        output.raw().write_all(&text)?;
        Ok(Exit::Sound)
    }
}

/// Write the man pages into a directory.
#[derive(Args)]
#[command(hide = true)]
pub struct Man {
    /// The directory, which is there.
    directory: PathBuf,
}

impl Man {
    pub fn run(&self, mut command: Command) -> Outcome {
        command.build();
        self.write(&command, "speculators")?;
        for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            self.write(subcommand, &format!("speculators-{}", subcommand.get_name()))?;
        }
        Ok(Exit::Sound)
    }

    fn write(&self, command: &Command, name: &str) -> std::io::Result<()> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone().name(name.to_owned())).render(&mut page)?;
        fs::write(self.directory.join(format!("{name}.1")), page)
    }
}
