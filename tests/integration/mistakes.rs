//! What operators get wrong, and what `vane` says to it: the field, the value it saw, and what
//! to do next. The answers are kept in mistakes.golden; `VANE_UPDATE_GOLDEN=1` writes it anew.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use vane_tests::admin::entry;
use vane_tests::process::{program, within};
use vane_tests::world::{Agent, World, spiffe_id};

/// A mistake: the command line, what it reads, and what the answer must name.
struct Mistake {
    command: &'static str,
    stdin: &'static str,
    names: &'static [&'static str],
}

const fn mistake(command: &'static str, names: &'static [&'static str]) -> Mistake {
    Mistake {
        command,
        stdin: "",
        names,
    }
}

const fn reads(
    command: &'static str,
    stdin: &'static str,
    names: &'static [&'static str],
) -> Mistake {
    Mistake {
        command,
        stdin,
        names,
    }
}

/// In a command `{…}` stands for something of the world; without --socket-path the real sockets
/// are used.
const MISTAKES: &[Mistake] = &[
    // Sockets.
    mistake(
        "entry list --socket-path {dir}/nothing.sock",
        &["{dir}/nothing.sock", "--socket-path"],
    ),
    mistake(
        "entry list --socket-path {dir}/missing/server.sock",
        &["{dir}/missing/server.sock", "--socket-path"],
    ),
    mistake(
        "entry list --socket-path {dir}",
        &["{dir}", "--socket-path"],
    ),
    mistake(
        "entry list --socket-path {dir}/file",
        &["{dir}/file", "--socket-path"],
    ),
    mistake(
        "entry list --socket-path {dir}/stale.sock",
        &["{dir}/stale.sock", "start the server"],
    ),
    mistake(
        "entry list --socket-path {open}/closed.sock",
        &["{open}/closed.sock", "root"],
    ),
    mistake(
        "entry list --socket-path unix://run/vane/server.sock",
        &[
            "--socket-path",
            "unix://run/vane/server.sock",
            "unix:///run/vane/server.sock",
        ],
    ),
    mistake(
        "entry list --socket-path tcp://127.0.0.1:8081",
        &["--socket-path", "tcp://127.0.0.1:8081"],
    ),
    mistake("entry list --socket-path ''", &["--socket-path", "\"\""]),
    mistake(
        "entry list --socket-path /run/{long}.sock",
        &["--socket-path", "{long}", "107"],
    ),
    mistake(
        "health --socket-path {dir}/nothing.sock",
        &["{dir}/nothing.sock"],
    ),
    mistake(
        "entry list --socket-path {public}",
        &["{public}", "--socket-path"],
    ),
    mistake(
        "svid fetch --socket-path unix://{dir}/nothing.sock",
        &["{dir}/nothing.sock", "--socket-path"],
    ),
    mistake(
        "svid fetch --socket-path {server}",
        &["{server}", "--socket-path"],
    ),
    mistake(
        "svid watch --socket-path unix://run/vane/agent.sock",
        &["--socket-path", "unix:///run/vane/agent.sock"],
    ),
    mistake(
        "health --agent --workload-api {dir}/nothing.sock",
        &["{dir}/nothing.sock", "--workload-api"],
    ),
    // No identity.
    mistake("svid fetch", &["no identity issued", "vane entry list"]),
    // SPIFFE IDs.
    mistake(
        "entry create --spiffe-id example.org/web --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "example.org/web", "spiffe://"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web/ --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "spiffe://example.org/web/"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://Example.org/web --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "spiffe://Example.org/web", "lower case"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/a//b --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "spiffe://example.org/a//b"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/../b --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "spiffe://example.org/../b"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org:8081/web --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "spiffe://example.org:8081/web"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web%20 --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id", "web%20"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org --parent-id {agent} --selector unix:uid:1",
        &["spiffe://example.org", "spiffe ID"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/spire/mine --parent-id {agent} --selector unix:uid:1",
        &["spiffe://example.org/spire/mine", "reserved"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://other.org/web --parent-id {agent} --selector unix:uid:1",
        &["spiffe://other.org/web", "trust domain"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id spiffe://other.org/node --selector unix:uid:1",
        &["spiffe://other.org/node", "parent ID"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id agent-1 --selector unix:uid:1",
        &["--parent-id", "agent-1"],
    ),
    // What is missing.
    mistake(
        "entry create --parent-id {agent} --selector unix:uid:1",
        &["--spiffe-id"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --selector unix:uid:1",
        &["--parent-id", "vane agent list"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent}",
        &["--selector", "unix:uid:1000"],
    ),
    mistake(
        "entry update --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1",
        &["--entry-id", "vane entry list"],
    ),
    mistake("entry delete", &["--entry-id"]),
    mistake("agent show", &["--spiffe-id"]),
    // Selectors.
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector uid",
        &["--selector", "\"uid\"", "type:value"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:",
        &["--selector", "unix:"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector :uid",
        &["--selector", ":uid"],
    ),
    // What is there, and what is not.
    mistake(
        "entry create --spiffe-id spiffe://example.org/there --parent-id {agent} --selector unix:uid:4294967294",
        &["spiffe://example.org/there", "{entry}", "vane entry update"],
    ),
    mistake(
        "entry create --entry-id {entry} --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1",
        &["{entry}"],
    ),
    mistake(
        "entry show --entry-id nothing",
        &["--entry-id", "nothing", "vane entry list"],
    ),
    mistake(
        "entry update --entry-id nothing --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1",
        &["nothing", "vane entry list"],
    ),
    mistake(
        "entry delete --entry-id nothing",
        &["--entry-id", "nothing", "vane entry list"],
    ),
    mistake(
        "agent show --spiffe-id spiffe://example.org/spire/agent/join_token/nobody",
        &["--spiffe-id", "nobody", "vane agent list"],
    ),
    mistake(
        "agent evict --spiffe-id spiffe://example.org/web",
        &["--spiffe-id", "spiffe://example.org/web"],
    ),
    mistake(
        "agent ban --spiffe-id spiffe://other.org/spire/agent/join_token/a",
        &["--spiffe-id", "spiffe://other.org/spire/agent/join_token/a"],
    ),
    // Files.
    mistake(
        "entry create --data {dir}/nothing.json",
        &["{dir}/nothing.json"],
    ),
    reads("entry create --data -", "", &["--data", "-"]),
    reads("entry create --data -", "spiffe_id: web", &["--data"]),
    reads(
        "entry create --data -",
        r#"{"entries":[]}"#,
        &["--data", "entries"],
    ),
    reads(
        "entry create --data -",
        r#"{"entries":[{"spifeid":"spiffe://example.org/web"}]}"#,
        &["--data", "spifeid"],
    ),
    reads(
        "entry create --data -",
        r#"{"entries":[{"spiffe_id":"example.org/web"}]}"#,
        &["--data", "spiffe_id", "example.org/web"],
    ),
    reads("entry delete --file -", r#"{"id":"a"}"#, &["--file"]),
    mistake(
        "entry create --data {dir}/entries.json --spiffe-id spiffe://example.org/web",
        &["--data", "--spiffe-id"],
    ),
    // Values.
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1 --x509-svid-ttl soon",
        &["--x509-svid-ttl", "soon"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1 --x509-svid-ttl=-5",
        &["--x509-svid-ttl", "-5"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1 --hint {hint}",
        &["--hint", "1025", "1024"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1 --dns a..b",
        &["DNS name", "a..b"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1 --federates-with other.org",
        &["other.org"],
    ),
    mistake(
        "entry create --spiffe-id spiffe://example.org/web --parent-id {agent} --selector unix:uid:1 --federates-with example.org",
        &["example.org", "own trust domain"],
    ),
    mistake("entry list -o yaml", &["yaml", "--output"]),
    mistake(
        "entry list --match-selectors-on some --selector unix:uid:1",
        &["some", "--match-selectors-on"],
    ),
    mistake("agent list --banned maybe", &["maybe", "--banned"]),
    mistake("agent list --expires-before tomorrow", &["tomorrow"]),
    mistake("bundle show --format der", &["der", "--format"]),
    // Bundles of others.
    mistake("bundle list --id Other.org", &["--id", "Other.org"]),
    mistake(
        "bundle list --id other.org",
        &["--id other.org", "vane bundle list"],
    ),
    mistake(
        "bundle list --id example.org",
        &["--id example.org", "own trust domain", "vane bundle show"],
    ),
    mistake("bundle set", &["--id"]),
    mistake(
        "bundle set --id other.org --path {dir}/nothing.pem",
        &["{dir}/nothing.pem", "--path"],
    ),
    reads(
        "bundle set --id other.org",
        "no bundle",
        &["standard input", "pem", "--format spiffe"],
    ),
    reads(
        "bundle set --id other.org --format spiffe",
        "{}",
        &["standard input", "spiffe", "--format pem"],
    ),
    reads(
        "bundle set --id example.org --format spiffe",
        r#"{"keys":[]}"#,
        &["--id example.org", "own trust domain"],
    ),
    mistake(
        "bundle delete --id other.org",
        &["--id other.org", "vane bundle list"],
    ),
    mistake(
        "bundle delete --id example.org",
        &["--id example.org", "another trust domain"],
    ),
    mistake(
        "bundle delete --id other.org --mode all",
        &["--mode", "all"],
    ),
    // Logs.
    mistake("logger set", &["--level"]),
    mistake("logger set --level loud", &["--level", "loud"]),
    mistake(
        "logger get --agent --agent-socket {dir}/nothing.sock",
        &["{dir}/nothing.sock", "--agent-socket"],
    ),
    mistake("agent purge --expired-for soon", &["--expired-for", "soon"]),
    mistake("token create --ttl 0", &["ttl"]),
    mistake(
        "token create --spiffe-id spiffe://other.org/node",
        &["spiffe://other.org/node"],
    ),
    mistake(
        "svid mint --spiffe-id spiffe://other.org/ops",
        &["spiffe://other.org/ops"],
    ),
    mistake(
        "svid mint --spiffe-id spiffe://example.org/web -o json",
        &["-o json", "--write"],
    ),
    mistake("svid fetch --all", &["--all", "--write"]),
    // JWT-SVIDs.
    mistake("svid fetch --jwt", &["--audience"]),
    mistake("svid fetch --audience web", &["--jwt"]),
    mistake(
        "svid fetch --jwt --audience web --write {dir}/tls",
        &["--jwt", "--write"],
    ),
    mistake(
        "svid fetch --jwt --audience ''",
        &["--audience", "my-service"],
    ),
    mistake(
        "svid fetch --jwt --audience web --spiffe-id example.org/web",
        &["--spiffe-id", "example.org/web", "spiffe://"],
    ),
    mistake(
        "svid fetch --jwt --audience web",
        &["no identity issued", "vane entry list"],
    ),
    mistake("jwt validate", &["--audience"]),
    mistake("jwt validate --audience ''", &["--audience", "my-service"]),
    mistake(
        "jwt validate --audience web --svid {dir}/nothing",
        &["--svid", "{dir}/nothing"],
    ),
    mistake(
        "jwt validate --audience web --svid eyJh.eyJz.c2ln",
        &["--svid", "a file", "pipe"],
    ),
    reads(
        "jwt validate --audience web",
        " ",
        &["standard input", "nothing"],
    ),
    reads(
        "jwt validate --audience web",
        "not a token",
        &["not valid", "vane svid fetch --jwt"],
    ),
    mistake("entrys list", &["entrys"]),
    mistake(
        "entry create --spiffeid spiffe://example.org/web",
        &["--spiffeid"],
    ),
];

/// A server, its agent, and things that are no socket.
struct Stage {
    world: World,
    agent: Agent,
    /// A folder that anybody may enter.
    open: tempfile::TempDir,
    entry: String,
}

impl Stage {
    async fn set() -> Self {
        let world = World::start().await;
        let agent = world.agent("agent").await;
        let taken = entry(&spiffe_id("/there"), &agent.id, &["unix:uid:4294967294"]);
        let entry = world.admin().await.create(taken).await;
        world.write("file", "no socket");
        world.write("entries.json", r#"{"entries":[]}"#);
        drop(std::os::unix::net::UnixListener::bind(world.path("stale.sock")).unwrap());
        let open = tempfile::Builder::new().prefix("vane").tempdir().unwrap();
        std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let closed = open.path().join("closed.sock");
        drop(std::os::unix::net::UnixListener::bind(&closed).unwrap());
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
        Self {
            world,
            agent,
            open,
            entry,
        }
    }

    /// What the words of a command stand for, the longest text first.
    fn words(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![
            ("{agent}", self.agent.id.clone()),
            ("{entry}", self.entry.clone()),
            ("{public}", path(&self.agent.socket)),
            ("{server}", path(&self.world.admin_socket())),
            ("{open}", path(self.open.path())),
            (
                "{dir}",
                path(&self.world.path("")).trim_end_matches('/').to_owned(),
            ),
            ("{long}", "long".repeat(40)),
            ("{hint}", "h".repeat(1025)),
        ]
    }

    fn fill(&self, text: &str) -> String {
        let words = self.words();
        words.iter().fold(text.to_owned(), |text, (word, value)| {
            text.replace(word, value)
        })
    }

    /// `text` with the words instead of what they stand for in this run.
    fn hide(&self, text: &str) -> String {
        let words = self.words();
        words.iter().fold(text.to_owned(), |text, (word, value)| {
            text.replace(value, word)
        })
    }

    /// Runs the command; exit code and everything it said.
    async fn run(&self, mistake: &Mistake) -> (i32, String) {
        let mut command = self.program(mistake);
        let words = mistake.command.split(' ');
        command
            .args(words.map(|word| {
                if word == "''" {
                    String::new()
                } else {
                    self.fill(word)
                }
            }))
            .env_clear()
            .env("VANE_SERVER_SOCKET", self.world.admin_socket())
            .env(
                "SPIFFE_ENDPOINT_SOCKET",
                format!("unix://{}", self.agent.socket.display()),
            )
            .env("COLUMNS", "100")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may be gone already.
        let _ = stdin.write_all(mistake.stdin.as_bytes()).await;
        drop(stdin);
        let ended = within(mistake.command, child.wait_with_output())
            .await
            .unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (
            ended.status.code().unwrap(),
            String::from_utf8(said).unwrap(),
        )
    }

    /// The CLI; root is nobody where it is about permissions.
    fn program(&self, mistake: &Mistake) -> Command {
        use std::os::unix::process::CommandExt as _;
        let vane = program("vane-test-cli");
        if mistake.command.contains("closed.sock") && nix::unistd::getuid().is_root() {
            let copy = self.open.path().join("vane");
            std::fs::copy(vane, &copy).unwrap();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
            command.arg(copy);
            return command;
        }
        let mut command = std::process::Command::new(vane);
        command.arg0("vane");
        command.into()
    }
}

#[tokio::test]
async fn what_vane_says_to_a_mistake_names_the_field_the_value_and_the_next_step() {
    let stage = Stage::set().await;
    let (mut all, mut wrong) = (String::new(), Vec::new());
    for mistake in MISTAKES {
        let (code, said) = stage.run(mistake).await;
        let said = stage.hide(&said);
        let _ = writeln!(all, "$ vane {}", mistake.command);
        if !mistake.stdin.is_empty() {
            let _ = writeln!(all, "< {}", mistake.stdin);
        }
        let _ = writeln!(all, "exit {code}\n{}\n", said.trim_end());
        let missing = mistake.names.iter().filter(|name| !said.contains(**name));
        wrong
            .extend(missing.map(|name| format!("vane {}: does not say {name:?}", mistake.command)));
        if !(said.contains("\n  next: ") || said.contains("try '--help'") && code == 2) {
            wrong.push(format!(
                "vane {}: does not say what to do next",
                mistake.command
            ));
        }
        if code != 1 && code != 2 {
            wrong.push(format!("vane {}: exit {code}", mistake.command));
        }
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/mistakes.golden");
    if std::env::var_os("VANE_UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &all).unwrap();
    }
    assert!(wrong.is_empty(), "\n{}\n\n{all}", wrong.join("\n"));
    assert!(MISTAKES.len() >= 25);
    let kept = std::fs::read_to_string(&golden).unwrap();
    let (kept, all): (Vec<_>, Vec<_>) = (kept.split("\n$ ").collect(), all.split("\n$ ").collect());
    for (kept, now) in kept.iter().zip(&all) {
        assert_eq!(kept, now, "VANE_UPDATE_GOLDEN=1 accepts it");
    }
    assert_eq!(
        kept.len(),
        all.len(),
        "VANE_UPDATE_GOLDEN=1 writes the file"
    );
}

#[tokio::test]
async fn a_server_that_was_stopped_is_named_as_down() {
    let mut stage = Stage::set().await;
    let server = stage.world.server.take().unwrap();
    assert_eq!(server.terminate().await, Some(0));
    let (code, said) = stage.run(&mistake("entry list", &[])).await;
    assert_eq!(code, 1, "{said}");
    for part in [
        "cannot reach the server at",
        "is the server running?",
        "--socket-path",
    ] {
        assert!(said.contains(part), "{said}");
    }
}
