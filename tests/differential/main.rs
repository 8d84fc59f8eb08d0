//! `vane-differential`: records the answers of a server, or compares them with the file.
//!
//! `record` is run against a real SPIRE server with its rate limits off, `compare` against any.
//! Both change what the server holds: give them one of its own. The story `differential` is the
//! comparison that CI makes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vane_tests::differential::answers::Answers;
use vane_tests::differential::run::Target;
use vane_tests::differential::{compare, table};

/// Sends the table of requests to a server.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
    /// Its admin socket.
    #[arg(long)]
    socket: PathBuf,
    /// Its TCP address.
    #[arg(long)]
    address: SocketAddr,
    /// The folder of the table and the answers.
    #[arg(long, default_value = "tests/differential")]
    folder: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Writes answers.txt.
    Record {
        /// Who answers, with the version.
        #[arg(long)]
        server: String,
    },
    /// Prints what differs from answers.txt; exit 1 when it is not what differences.txt allows.
    Compare,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let text = read(&options.folder, "requests.txt");
    let mut target = Target::connect(&options.socket, options.address).await;
    let mut answers = target.answer(&table::parse(&text), &text).await;
    match options.command {
        Command::Record { server } => {
            answers.server = server;
            let path = options.folder.join("answers.txt");
            std::fs::write(path, answers.to_text()).expect("answers.txt is written");
            println!("{} answers", answers.list.len());
            ExitCode::SUCCESS
        }
        Command::Compare => {
            let recorded = Answers::parse(&read(&options.folder, "answers.txt"));
            let allowed = compare::allowed(&read(&options.folder, "differences.txt"));
            let verdict = compare::compare(&recorded, &answers, &allowed);
            println!("{verdict}");
            if verdict.is_good() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
