//! `vane completion`: scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  source <(vane completion bash)\n  vane completion fish > ~/.config/fish/completions/vane.fish"
)]
pub(crate) struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    /// Prints the script for the commands of `C`.
    pub(crate) fn run<C: CommandFactory>(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut C::command(), "vane", &mut script);
        output::raw(&String::from_utf8_lossy(&script))
    }
}
