//! `vane jwt`: JWT-SVIDs that others sent.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use clap::{Args, Subcommand};
use tonic::{Code, Status};
use vane_chassis::clock::{Clock as _, System};
use vane_identity::jwt_svid::{JwtSvid, MAX_TOKEN_BYTES};
use vane_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vane_wire::workload::{ValidateJwtsvidRequest, ValidateJwtsvidResponse};

use crate::agent_socket::{connect, failure_at, request, workload_api};
use crate::failure::Failure;
use crate::output::{self, Format};

const FLAG: &str = "--socket-path";

/// Tokens of other workloads.
#[derive(Debug, Subcommand)]
pub(crate) enum Jwt {
    /// Have a JWT-SVID validated by the agent: whose it is, and what it claims.
    #[command(
        after_help = "Examples:\n  vane jwt validate --audience my-service --svid token.jwt\n  printf %s \"$TOKEN\" | vane jwt validate --audience my-service"
    )]
    Validate(Validate),
}

#[derive(Debug, Args)]
pub(crate) struct Validate {
    /// Who is to accept the token: this must be one of its audiences.
    #[arg(long, value_name = "AUDIENCE")]
    audience: String,
    /// The file that the token stands in; - is the standard input.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "-",
        hide_default_value = true
    )]
    svid: String,
    /// The Workload API; else SPIFFE_ENDPOINT_SOCKET, else unix:///run/vane/agent.sock.
    #[arg(long, value_name = "ADDRESS")]
    socket_path: Option<String>,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Jwt {
    /// Carries the command out.
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Validate(validate) => validate.run().await,
        }
    }
}

impl Validate {
    async fn run(self) -> Result<(), Failure> {
        if self.audience.is_empty() {
            return Err(Failure::usage("--audience is empty")
                .hint("name yourself as the sender of the token does: --audience my-service"));
        }
        let token = token(&self.svid)?;
        let endpoint = workload_api(FLAG, self.socket_path.as_deref())?;
        let channel = connect(&endpoint, FLAG).await?;
        let expires_at = JwtSvid::parse(&token).map(|svid| svid.expires_at()).ok();
        let message = ValidateJwtsvidRequest {
            audience: self.audience,
            svid: token,
        };
        let mut client = SpiffeWorkloadApiClient::new(channel);
        let answer = client.validate_jwtsvid(request(message)).await;
        let valid = answer.map_err(|status| match status.code() {
            Code::InvalidArgument => invalid(&status),
            _ => failure_at(&endpoint, &status, FLAG),
        })?;
        let valid = valid.into_inner();
        match self.output {
            Format::Json => output::json(&valid),
            Format::Table => print(&valid, expires_at),
        }
    }
}

fn print(valid: &ValidateJwtsvidResponse, expires_at: Option<i64>) -> Result<(), Failure> {
    let message = output::value(valid)?;
    let claims = message.get("claims").map(ToString::to_string);
    let expires = expires_at.map(|at| output::expiry(at, System.now()));
    output::line("The JWT-SVID is valid.")?;
    output::fields(&[
        ("SPIFFE ID", valid.spiffe_id.clone()),
        ("Expires", expires.unwrap_or_default()),
        ("Claims", claims.unwrap_or_default()),
    ])
}

/// Why the agent does not take the token.
fn invalid(status: &Status) -> Failure {
    let text = status.message();
    let failure = Failure::new(format!("the JWT-SVID is not valid: {text}"));
    if text.contains("expired") {
        failure.hint(
            "have its sender fetch another one; if it did, compare the clocks of both machines",
        )
    } else if text.contains("expected audience") {
        failure.hint("its sender must name you: `vane svid fetch --jwt --audience …` with what you passed here")
    } else if text.contains("no keys found for trust domain") {
        failure.hint("an entry of this process must federate with that trust domain: `vane entry list` shows them")
    } else {
        failure.hint(
            "do not trust its sender; `vane svid fetch --jwt` shows what a good one looks like",
        )
    }
}

/// The token in `file`, or of the standard input. It never stands in an error.
fn token(file: &str) -> Result<String, Failure> {
    let read = match file {
        "-" if std::io::stdin().is_terminal() => {
            return Err(Failure::usage("there is no JWT-SVID to validate")
                .hint("name its file with --svid, or pipe it in"));
        }
        "-" => read(std::io::stdin().lock()),
        token if is_token(token) && !Path::new(token).exists() => {
            return Err(Failure::usage(
                "--svid takes a file, not the JWT-SVID itself: everybody on this machine can read the arguments of a program",
            )
            .hint("pipe it in: printf %s \"$TOKEN\" | vane jwt validate --audience …"));
        }
        path => std::fs::File::open(path).and_then(read),
    };
    let source = match file {
        "-" => "the standard input".to_owned(),
        file => format!("--svid {file:?}"),
    };
    let text = read.map_err(|error| {
        Failure::usage(format!("{source} cannot be read: {error}"))
            .hint("name the file that the JWT-SVID stands in, or - for the standard input")
    })?;
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::usage(format!("{source} holds nothing"))
            .hint("`vane svid fetch --jwt` prints JWT-SVIDs"));
    }
    Ok(token.to_owned())
}

/// No more than a token may have, and the white space around it.
fn read(from: impl std::io::Read) -> std::io::Result<String> {
    let most = u64::try_from(MAX_TOKEN_BYTES).unwrap_or(u64::MAX) + 16;
    let mut text = String::new();
    from.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether it looks like a token rather than a path.
fn is_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.matches('.').count() == 2 && !text.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_the_arguments_is_refused_and_not_repeated() {
        let token_text = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln";
        let refused = token(token_text).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(!refused.to_string().contains("eyJ"), "{refused}");
    }

    #[test]
    fn a_token_is_read_from_a_file_without_the_white_space_around_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(
            token(path)
                .unwrap_err()
                .to_string()
                .contains("holds nothing")
        );
        std::fs::write(path, "a.b.c\n").unwrap();
        assert_eq!(token(path), Ok("a.b.c".to_owned()));
    }

    #[test]
    fn what_is_wrong_with_a_token_has_a_next_step() {
        let hint = |text: &str| invalid(&Status::invalid_argument(text)).to_string();
        for (text, next) in [
            ("token has expired", "fetch another one"),
            (
                "expected audience in \"x\" (audience=[\"y\"])",
                "must name you",
            ),
            ("no keys found for trust domain \"other.org\"", "federate"),
            ("token signature does not verify", "do not trust"),
        ] {
            assert!(hint(text).contains(next), "{}", hint(text));
        }
    }
}
