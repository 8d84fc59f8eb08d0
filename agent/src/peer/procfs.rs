//! Reads one process's /proc directory through a descriptor of that directory.
//!
//! A descriptor of /proc/<pid> belongs to one process for ever: once that is
//! reaped, reads through it fail with ESRCH, whoever has the number by then.
//! Parsers are pure. Nothing here asks whether the process still lives.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstatat};

/// More than any file read here has: 65,536 groups of 11 characters in `status`.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a fact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read. EACCES on `exe`: the agent may not look into that
    /// process (it needs root or CAP_SYS_PTRACE); ENOENT: it has ended.
    #[error("cannot read {file} of the process in /proc")]
    Io {
        /// The file's name in the process's directory.
        file: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is not as the kernel writes it.
    #[error("cannot understand {file} of the process in /proc")]
    Form {
        /// The file's name in the process's directory.
        file: &'static str,
    },
}

/// Real, effective, saved and file system ID, in the order of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Who started it.
    pub real: u32,
    /// Who it acts as.
    pub effective: u32,
    /// Whom it can become again.
    pub saved: u32,
    /// Whose files it opens.
    pub fs: u32,
}

/// Users and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) uid: Ids,
    pub(super) gid: Ids,
    pub(super) groups: Box<[u32]>,
}

/// What `stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// Clock ticks after boot.
    pub(super) start_time: u64,
    /// Zombie or dead.
    pub(super) ended: bool,
}

pub(super) fn open_process(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(format!("/proc/{pid}").as_str(), flags, Mode::empty())?)
}

/// The `Pid:` line of a pidfd's fdinfo: -1 once reaped, 0 outside our PID namespace.
pub(super) fn pid_of(pidfd: &impl AsFd) -> Result<i32, ReadError> {
    const FILE: &str = "fdinfo";
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let text = File::open(path)
        .and_then(read_all)
        .map_err(|source| ReadError::Io { file: FILE, source })?;
    parse_pid(&text).ok_or(ReadError::Form { file: FILE })
}

pub(super) fn status(dir: &OwnedFd) -> Result<Status, ReadError> {
    parse_status(&read(dir, "status")?).ok_or(ReadError::Form { file: "status" })
}

pub(super) fn stat(dir: &OwnedFd) -> Result<Stat, ReadError> {
    parse_stat(&read(dir, "stat")?).ok_or(ReadError::Form { file: "stat" })
}

pub(super) fn cgroup(dir: &OwnedFd) -> Result<String, ReadError> {
    String::from_utf8(read(dir, "cgroup")?).map_err(|_| ReadError::Form { file: "cgroup" })
}

/// The cgroup file of this process.
///
/// # Errors
/// [`ReadError`].
pub fn own_cgroup() -> Result<String, ReadError> {
    const FILE: &str = "cgroup";
    let text = File::open("/proc/self/cgroup")
        .and_then(read_all)
        .map_err(|source| ReadError::Io { file: FILE, source })?;
    String::from_utf8(text).map_err(|_| ReadError::Form { file: FILE })
}

/// The file that the process executes, whatever its name has become.
pub(super) fn exe(dir: &OwnedFd) -> Result<FileStat, ReadError> {
    fstatat(dir, "exe", AtFlags::empty()).map_err(|error| ReadError::Io {
        file: "exe",
        source: error.into(),
    })
}

fn read(dir: &OwnedFd, file: &'static str) -> Result<Vec<u8>, ReadError> {
    openat(dir, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|fd| read_all(File::from(fd)))
        .map_err(|source| ReadError::Io { file, source })
}

fn read_all(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(2048);
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(text)
}

fn parse_pid(fdinfo: &[u8]) -> Option<i32> {
    line(std::str::from_utf8(fdinfo).ok()?, "Pid:")?
        .trim()
        .parse()
        .ok()
}

fn parse_status(status: &[u8]) -> Option<Status> {
    // The name line may hold any octets; the numbers behind it do not.
    let text = String::from_utf8_lossy(status);
    Some(Status {
        uid: parse_ids(line(&text, "Uid:")?)?,
        gid: parse_ids(line(&text, "Gid:")?)?,
        groups: numbers(line(&text, "Groups:")?).collect::<Option<_>>()?,
    })
}

fn parse_ids(line: &str) -> Option<Ids> {
    let mut ids = numbers(line);
    let mut next = || ids.next().flatten();
    Some(Ids {
        real: next()?,
        effective: next()?,
        saved: next()?,
        fs: next()?,
    })
}

fn numbers(line: &str) -> impl Iterator<Item = Option<u32>> {
    line.split_ascii_whitespace()
        .map(|number| number.parse().ok())
}

/// The rest of the first line that begins with `key`. The kernel escapes line ends in names.
fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key))
}

/// proc_pid_stat(5): state is field 3 and start time field 22; field 2, the name
/// in brackets, may hold brackets and blanks itself.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(stat);
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    Some(Stat {
        start_time: fields.nth(18)?.parse().ok()?,
        ended: matches!(state, "Z" | "X" | "x"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_line_ends_does_not_move_the_fields() {
        let stat = b"77 (a) S 1) R 9) Z 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9\n";
        assert_eq!(
            parse_stat(stat),
            Some(Stat {
                start_time: 123_456,
                ended: true
            })
        );
        let status = b"Name:\tUid:\\n\xff\nState:\tR\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t27 100 \n";
        assert_eq!(
            parse_status(status),
            Some(Status {
                uid: Ids {
                    real: 1,
                    effective: 2,
                    saved: 3,
                    fs: 4
                },
                gid: Ids {
                    real: 5,
                    effective: 6,
                    saved: 7,
                    fs: 8
                },
                groups: [27, 100].into(),
            })
        );
    }

    #[test]
    fn a_file_that_is_cut_short_is_not_understood() {
        assert_eq!(parse_stat(b"77 (a) S 1 77"), None);
        assert_eq!(parse_stat(b"77 (a"), None);
        assert_eq!(
            parse_status(b"Uid:\t1\t2\t3\nGid:\t5\t6\t7\t8\nGroups:\t\n"),
            None
        );
        assert_eq!(parse_pid(b"pos:\t0\nPid:\t\n"), None);
        assert_eq!(parse_pid(b"pos:\t0\nPid:\t-1\nNSpid:\t-1\n"), Some(-1));
    }
}
