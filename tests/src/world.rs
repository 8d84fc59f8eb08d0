//! One server with its agents, in a temporary folder, over real sockets.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::admin::Admin;
use crate::process::{Launch, Process};
use crate::workload::Workload;

/// The trust domain of every world.
pub const TRUST_DOMAIN: &str = "example.org";

/// What a world is started with; keys of the server's TOML beyond those it needs.
#[derive(Default, Clone)]
pub struct Options {
    /// Lines of `[server]`.
    pub server: String,
    /// Lines of `[agent]`.
    pub agent: String,
    /// Further tables of the server's file.
    pub server_tables: String,
    /// Further tables of the agents' files.
    pub agent_tables: String,
    /// The most descriptors of the server, when it is not this process's limit.
    pub server_descriptors: Option<u64>,
    /// The port of the server's ops listener; none has it off.
    pub server_telemetry: Option<u16>,
    /// Variables of the server's environment.
    pub server_environment: Vec<(String, String)>,
    /// Variables of the agents' environment.
    pub agent_environment: Vec<(String, String)>,
}

impl Options {
    /// Adds a line to `[server]`.
    #[must_use]
    pub fn server(mut self, line: &str) -> Self {
        let _ = writeln!(self.server, "{line}");
        self
    }

    /// Adds a line to `[agent]`.
    #[must_use]
    pub fn agent(mut self, line: &str) -> Self {
        let _ = writeln!(self.agent, "{line}");
        self
    }
}

/// A running server, its folder and what it was started with.
pub struct World {
    dir: TempDir,
    options: Options,
    port: u16,
    /// The server; none between [`World::kill_server`] and [`World::restart_server`].
    pub server: Option<Process>,
}

/// A running agent.
pub struct Agent {
    /// Its process.
    pub process: Process,
    /// Its SPIFFE ID.
    pub id: String,
    /// Its public socket.
    pub socket: PathBuf,
    config: PathBuf,
    log: PathBuf,
}

/// The SPIFFE ID of `path` in the trust domain of the worlds.
pub fn spiffe_id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}{path}")
}

/// The selector that this process satisfies.
pub fn own_selector() -> String {
    format!("unix:uid:{}", nix::unistd::getuid())
}

impl World {
    /// Starts a server with default settings.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// Starts a server with `options`.
    pub async fn with(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("vane").tempdir().unwrap();
        let mut world = Self {
            dir,
            options,
            port: 0,
            server: None,
        };
        world.restart_server().await;
        world
    }

    /// A path in the world's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.path("server.sock")
    }

    /// The TCP port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process.
    pub fn server(&self) -> &Process {
        self.server.as_ref().expect("the server runs")
    }

    /// What the server logged, in all its lives.
    pub fn server_log(&self) -> String {
        read(&self.path("server.log"))
    }

    /// Connects to the admin socket.
    pub async fn admin(&self) -> Admin {
        Admin::connect(&self.admin_socket()).await
    }

    /// `kill -9` of the server.
    pub async fn kill_server(&mut self) {
        self.server.take().expect("the server runs").kill().await;
    }

    /// Adds a line to `[server]` for the next start.
    pub fn add_to_server(&mut self, line: &str) {
        let _ = writeln!(self.options.server, "{line}");
    }

    /// Starts the server, on the port it had.
    pub async fn restart_server(&mut self) {
        self.try_restart_server()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// As [`World::restart_server`]; a server that refuses to start is an error with its log.
    pub async fn try_restart_server(&mut self) -> Result<(), String> {
        let config = self.write_server_config();
        let args = ["run", "-c", config.to_str().unwrap()];
        let (name, log) = ("vane-test-server", self.path("server.log"));
        let launch = Launch {
            descriptors: self.options.server_descriptors,
            environment: self.options.server_environment.clone(),
            ..Launch::default()
        };
        let process = Process::try_start_under(&launch, name, &args, &log).await?;
        let address = &process.ready["server_address"];
        self.port = address.rsplit(':').next().unwrap().parse().unwrap();
        self.server = Some(process);
        Ok(())
    }

    fn write_server_config(&self) -> PathBuf {
        let telemetry = match self.options.server_telemetry {
            Some(port) => format!("ops_address = \"127.0.0.1:{port}\""),
            None => "enabled = false".to_owned(),
        };
        let text = format!(
            "[server]\ntrust_domain = {TRUST_DOMAIN:?}\nbind_address = \"127.0.0.1\"\nbind_port = {}\nsocket_path = {:?}\ndata_dir = {:?}\n{}\n[telemetry]\n{telemetry}\n{}",
            self.port,
            self.admin_socket(),
            self.path("server"),
            self.options.server,
            self.options.server_tables,
        );
        self.write("server.toml", &text)
    }

    /// Writes a file into the world's folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Attests a new agent by join token and starts it.
    pub async fn agent(&self, name: &str) -> Agent {
        self.agent_under(None, name).await
    }

    /// As [`World::agent`], with at most so many descriptors.
    pub async fn agent_under(&self, descriptors: Option<u64>, name: &str) -> Agent {
        let token = self.admin().await.token().await;
        let token = format!("join_token = {token:?}\n");
        self.start_agent(descriptors, name, &token, "").await
    }

    /// Starts a new agent that proves itself as the table `attestor` says.
    pub async fn agent_by(&self, name: &str, attestor: &str) -> Agent {
        self.start_agent(None, name, "", attestor).await
    }

    /// As [`World::agent_by`]; one that refuses to start is an error with its log. An agent of
    /// that name may have run before.
    pub async fn try_agent_by(&self, name: &str, attestor: &str) -> Result<Agent, String> {
        self.try_start_agent(None, name, "", attestor).await
    }

    async fn start_agent(
        &self,
        descriptors: Option<u64>,
        name: &str,
        keys: &str,
        tables: &str,
    ) -> Agent {
        self.try_start_agent(descriptors, name, keys, tables)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    async fn try_start_agent(
        &self,
        descriptors: Option<u64>,
        name: &str,
        keys: &str,
        tables: &str,
    ) -> Result<Agent, String> {
        let bundle = self.admin().await.bundle().await;
        let bundle = self.write("bundle.pem", &pem(&bundle));
        let socket = self.path(&format!("{name}.sock"));
        let text = format!(
            "[agent]\ntrust_domain = {TRUST_DOMAIN:?}\nserver_address = \"127.0.0.1\"\nserver_port = {}\nsocket_path = {socket:?}\ndata_dir = {:?}\nseal_key_dir = {:?}\ntrust_bundle_path = {bundle:?}\n{keys}{}\n{}\n{tables}",
            self.port,
            self.path(name),
            self.path("keys"),
            self.options.agent,
            self.options.agent_tables,
        );
        let config = self.write(&format!("{name}.toml"), &text);
        let log = self.path(&format!("{name}.log"));
        let launch = Launch {
            descriptors,
            environment: self.options.agent_environment.clone(),
            ..Launch::default()
        };
        Agent::try_start(launch, config, log, socket).await
    }
}

impl Agent {
    async fn start(launch: Launch, config: PathBuf, log: PathBuf, socket: PathBuf) -> Self {
        Self::try_start(launch, config, log, socket)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    async fn try_start(
        launch: Launch,
        config: PathBuf,
        log: PathBuf,
        socket: PathBuf,
    ) -> Result<Self, String> {
        let args = ["run", "-c", config.to_str().unwrap()];
        let process = Process::try_start_under(&launch, "vane-test-agent", &args, &log).await?;
        let id = process.ready["agent_id"].clone();
        Ok(Self {
            process,
            id,
            socket,
            config,
            log,
        })
    }

    /// `kill -9`, does `between`, then starts it again; one that refuses to start is an error
    /// with its log.
    pub async fn kill_and_try_restart(self, between: impl FnOnce()) -> Result<Self, String> {
        self.process.kill().await;
        between();
        Self::try_start(Launch::default(), self.config, self.log, self.socket).await
    }

    /// `kill -9`, waits for `between`, then starts it again.
    pub async fn kill_and_restart_after(self, between: impl Future<Output = ()>) -> Self {
        self.process.kill().await;
        between.await;
        Self::start(Launch::default(), self.config, self.log, self.socket).await
    }

    /// `kill -9`, then starts it again on its folder.
    pub async fn kill_and_restart(self) -> Self {
        self.process.kill().await;
        Self::start(Launch::default(), self.config, self.log, self.socket).await
    }

    /// Starts a second agent on the same folder, which takes over; how the first one ended.
    pub async fn replace(self) -> (Self, Option<i32>) {
        let Self {
            mut process,
            config,
            log,
            socket,
            ..
        } = self;
        let next = Self::start(Launch::default(), config, log, socket).await;
        (next, process.ended().await)
    }

    /// Tries to start a second agent on the same folder; what it says when it does not start.
    pub async fn try_second(&self) -> Result<Process, String> {
        let args = ["run", "-c", self.config.to_str().unwrap()];
        let log = self.log.with_extension("second.log");
        Process::try_start("vane-test-agent", &args, &log).await
    }

    /// Its admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        let stem = self.socket.file_stem().unwrap().to_str().unwrap();
        self.socket.with_file_name(format!("{stem}-admin.sock"))
    }

    /// Connects this process as a workload.
    pub async fn workload(&self) -> Workload {
        Workload::connect(&self.socket).await
    }

    /// What it logged.
    pub fn log(&self) -> String {
        read(&self.log)
    }

    /// Where it logs; a successor goes on there.
    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }
}

/// The text of a file; none when it is not there.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The CA certificates of a bundle as PEM.
pub fn pem(bundle: &vane_wire::spire::api::types::Bundle) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for authority in &bundle.x509_authorities {
        let _ = writeln!(text, "-----BEGIN CERTIFICATE-----");
        for line in base64(&authority.asn1).as_bytes().chunks(64) {
            let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
        }
        let _ = writeln!(text, "-----END CERTIFICATE-----");
    }
    text
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
