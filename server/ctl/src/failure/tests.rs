use std::io;
use std::os::unix::net::UnixListener;

use tonic::Status;

use super::*;

fn refused() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionRefused)
}

fn unreached(path: &Path) -> String {
    Failure::unreachable("server", path, &refused(), "--socket-path").to_string()
}

#[test]
fn a_socket_that_cannot_be_reached_is_told_by_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.sock");
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let cases = [
        (
            &missing,
            "is the server running? Name its socket with --socket-path",
        ),
        (&file, "that is no socket"),
        (&stale, "nobody listens there"),
    ];
    for (path, hint) in cases {
        let text = unreached(path);
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn what_a_server_answers_is_told_with_the_next_step() {
    let cases = [
        (
            Status::permission_denied("no identity issued"),
            "vane entry list",
        ),
        (Status::permission_denied("no"), "administrator"),
        (Status::not_found("entry not found"), "vane agent list"),
        (Status::resource_exhausted("slow down"), "try again"),
        (Status::unavailable("store"), "log"),
        (Status::internal("oops"), "error: Internal: oops"),
        (Status::unimplemented("later"), "later"),
    ];
    for (status, named) in cases {
        let failure = Failure::of_status(&status);
        let text = failure.to_string();
        assert_eq!(failure.exit_code(), 1);
        assert!(text.contains(status.message()), "{text}");
        assert!(text.contains(named), "{text}");
        assert!(text.contains("\n  next: "), "{text}");
    }
}

#[test]
fn a_wrong_spiffe_id_is_told_with_flag_value_and_remedy() {
    let cases = [
        ("example.org/a", "write it whole: --f spiffe://"),
        ("spiffe://example.org/a/", "--f spiffe://example.org/a"),
        ("spiffe://Example.org/a", "lower case"),
    ];
    for (text, remedy) in cases {
        let failure = spiffe_id("--f", text).unwrap_err();
        let told = failure.to_string();
        assert_eq!(failure.exit_code(), 2);
        assert!(told.contains(&format!("--f {text:?}")), "{told}");
        assert!(told.contains(remedy), "{told}");
    }
    assert!(spiffe_id("--f", "spiffe://example.org/a").is_ok());
}

#[test]
fn a_wrong_selector_is_told_with_flag_value_and_example() {
    for text in ["", "unix", ":uid:1"] {
        let told = selector("--selector", text).unwrap_err().to_string();
        assert!(told.contains(&format!("--selector {text:?}")), "{told}");
        assert!(told.contains("--selector unix:uid:1000"), "{told}");
    }
    let read = selector("--selector", "unix:path:/a:b").unwrap();
    assert_eq!((read.kind(), read.value()), ("unix", "path:/a:b"));
}
