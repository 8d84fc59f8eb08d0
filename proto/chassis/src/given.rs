//! Listening sockets that somebody else opened for us: systemd (socket activation), or the
//! process whose place we take.
//!
//! Each has a name (`FileDescriptorName=` of the socket unit) and is taken once, by that name.
//! A descriptor that is no listening socket is refused, as is one whose Unix path is not the
//! configured one: then two parties disagree about where we listen. What is not taken is
//! closed with this.

use std::fmt;
use std::io;
use std::net;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};

/// The sockets that are not taken yet.
#[derive(Default)]
pub struct Given(Vec<Socket>);

/// One of them.
struct Socket {
    name: String,
    listener: Listener,
    /// Whether the giver removes the socket file: systemd does, a predecessor does not.
    is_kept: bool,
}

enum Listener {
    Unix(unix::UnixListener),
    Tcp(net::TcpListener),
}

/// A Unix socket that was taken.
#[derive(Debug)]
pub struct GivenUnix {
    /// The socket; it listens.
    pub listener: unix::UnixListener,
    /// Whether its file is the giver's, and is left at the end.
    pub is_kept: bool,
}

/// Why what was passed is not used.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// It is no socket, or does not listen.
    #[error("the descriptor {name:?} that was passed is no listening socket: {source}")]
    NotListening {
        /// Its name.
        name: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// It listens elsewhere than is configured.
    #[error(
        "the socket {name:?} that was passed listens at {actual:?}, but {wanted:?} is configured: make them equal"
    )]
    Elsewhere {
        /// Its name.
        name: String,
        /// Where it listens.
        actual: Option<PathBuf>,
        /// Where it should.
        wanted: PathBuf,
    },
    /// A Unix socket stands where a TCP one is wanted, or the other way round.
    #[error("the socket {name:?} that was passed is not of the kind that is wanted: {wanted}")]
    Kind {
        /// Its name.
        name: String,
        /// `Unix` or `TCP`.
        wanted: &'static str,
    },
}

impl Given {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// What systemd passes to this process (sd_listen_fds(3)): `LISTEN_FDS` from descriptor 3 on,
    /// if `LISTEN_PID` is this process, named by `LISTEN_FDNAMES`. To be called once.
    ///
    /// # Errors
    /// [`GivenError::NotListening`].
    pub fn from_systemd() -> Result<Self, GivenError> {
        if std::env::var_os("LISTEN_PID").is_none() {
            return Ok(Self::none());
        }
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut passed = ListenFd::from_env();
        let mut given = Self::none();
        for at in 0..passed.len() {
            let name = names.next().filter(|name| !name.is_empty());
            let name = name.unwrap_or_else(|| "unknown".to_owned());
            let taken = match passed.take_unix_listener(at) {
                Ok(listener) => listener.map(Listener::Unix),
                Err(_) => passed
                    .take_tcp_listener(at)
                    .map_err(|source| GivenError::NotListening {
                        name: name.clone(),
                        source,
                    })?
                    .map(Listener::Tcp),
            };
            if let Some(listener) = taken {
                given.add(name, listener, true)?;
            }
        }
        Ok(given)
    }

    /// Adds a socket of a predecessor: a Unix one, else TCP.
    ///
    /// # Errors
    /// [`GivenError::NotListening`].
    pub fn push(&mut self, name: String, fd: OwnedFd, is_kept: bool) -> Result<(), GivenError> {
        let unix = unix::UnixListener::from(fd);
        let listener = match unix.local_addr() {
            Ok(_) => Listener::Unix(unix),
            Err(_) => Listener::Tcp(OwnedFd::from(unix).into()),
        };
        self.add(name, listener, is_kept)
    }

    fn add(&mut self, name: String, listener: Listener, is_kept: bool) -> Result<(), GivenError> {
        let is_listening = match &listener {
            Listener::Unix(socket) => getsockopt(&socket.as_fd(), AcceptConn),
            Listener::Tcp(socket) => getsockopt(&socket.as_fd(), AcceptConn),
        };
        match is_listening {
            Ok(true) => {}
            Ok(false) => {
                let source = io::ErrorKind::NotConnected.into();
                return Err(GivenError::NotListening { name, source });
            }
            Err(errno) => {
                let source = errno.into();
                return Err(GivenError::NotListening { name, source });
            }
        }
        self.0.push(Socket {
            name,
            listener,
            is_kept,
        });
        Ok(())
    }

    /// Whether there is one called `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|socket| socket.name == name)
    }

    /// Adds what `other` has.
    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Takes the Unix socket `name`, which must listen at `path`; None when there is none.
    ///
    /// # Errors
    /// [`GivenError::Kind`], [`GivenError::Elsewhere`].
    pub fn take_unix(&mut self, name: &str, path: &Path) -> Result<Option<GivenUnix>, GivenError> {
        let Some(socket) = self.take(name) else {
            return Ok(None);
        };
        let Listener::Unix(listener) = socket.listener else {
            return Err(GivenError::Kind {
                name: socket.name,
                wanted: "Unix",
            });
        };
        let address = listener.local_addr().ok();
        let actual = address.and_then(|it| it.as_pathname().map(Path::to_owned));
        if actual.as_deref() != Some(path) {
            return Err(GivenError::Elsewhere {
                name: socket.name,
                actual,
                wanted: path.to_owned(),
            });
        }
        Ok(Some(GivenUnix {
            listener,
            is_kept: socket.is_kept,
        }))
    }

    /// Takes the TCP socket `name`; None when there is none.
    ///
    /// # Errors
    /// [`GivenError::Kind`].
    pub fn take_tcp(&mut self, name: &str) -> Result<Option<net::TcpListener>, GivenError> {
        match self.take(name).map(|socket| (socket.name, socket.listener)) {
            None => Ok(None),
            Some((_, Listener::Tcp(listener))) => Ok(Some(listener)),
            Some((name, Listener::Unix(_))) => Err(GivenError::Kind {
                name,
                wanted: "TCP",
            }),
        }
    }

    /// The names of those that nobody took.
    #[must_use]
    pub fn left(&self) -> Vec<&str> {
        self.0.iter().map(|socket| socket.name.as_str()).collect()
    }

    fn take(&mut self, name: &str) -> Option<Socket> {
        let at = self.0.iter().position(|socket| socket.name == name)?;
        Some(self.0.remove(at))
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Given").field(&self.left()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix_socket() -> (tempfile::TempDir, PathBuf, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = unix::UnixListener::bind(&path).unwrap();
        (folder, path, listener.into())
    }

    #[test]
    fn a_socket_is_taken_once_by_its_name_and_where_it_is_configured() {
        let (_folder, path, fd) = unix_socket();
        let mut given = Given::none();
        given.push("admin".to_owned(), fd, true).unwrap();
        assert!(given.take_unix("public", &path).unwrap().is_none());
        assert_eq!(given.left(), ["admin"]);
        let taken = given.take_unix("admin", &path).unwrap().unwrap();
        assert!(taken.is_kept);
        assert!(given.take_unix("admin", &path).unwrap().is_none());
    }

    #[test]
    fn a_socket_of_another_place_or_kind_is_refused_and_says_so() {
        let (_folder, path, fd) = unix_socket();
        let tcp = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut given = Given::none();
        given.push("admin".to_owned(), fd, false).unwrap();
        given.push("ops".to_owned(), tcp.into(), false).unwrap();
        let elsewhere = given
            .take_unix("admin", Path::new("/run/vane/x"))
            .unwrap_err();
        assert_eq!(
            elsewhere.to_string(),
            format!(
                "the socket \"admin\" that was passed listens at Some({path:?}), but \"/run/vane/x\" is configured: make them equal"
            )
        );
        assert!(matches!(
            given.take_unix("ops", &path),
            Err(GivenError::Kind { wanted: "Unix", .. })
        ));
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let (one, _other) = unix::UnixStream::pair().unwrap();
        let error = Given::none().push("x".to_owned(), one.into(), false);
        assert!(matches!(error, Err(GivenError::NotListening { .. })));
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Given::none().push("x".to_owned(), file.into(), false);
        assert!(matches!(error, Err(GivenError::NotListening { .. })));
    }
}
