//! For trying foreign gRPC clients by hand: `unix_echo SOCKET [STATUS]` answers every
//! method of SpiffeWorkloadAPI on the socket with that gRPC status (7) and prints at
//! Ctrl-C which authorities and paths reached the handler, and how often.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool for one's own eyes"
)]

#[path = "../tests/foreign_clients/server.rs"]
mod server;

use std::path::Path;

use tokio_util::sync::CancellationToken;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap();
    let status: &'static str = arguments.next().unwrap_or_else(|| "7".to_owned()).leak();
    let (calls, stop) = (server::Calls::default(), CancellationToken::new());
    let ctrl_c = async {
        tokio::signal::ctrl_c().await.unwrap();
        stop.cancel();
    };
    tokio::join!(
        server::serve(Path::new(&path), status, calls.clone(), stop.clone()),
        ctrl_c
    );
    println!("{:#?}", calls.lock().unwrap());
}
