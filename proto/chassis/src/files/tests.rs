use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

fn dir() -> (TempDir, Dir) {
    let held = tempfile::tempdir().unwrap();
    let dir = private_dir(&held.path().join("data")).unwrap();
    (held, dir)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_is_written_whole_with_its_mode_and_nothing_is_left_beside_it() {
    let (_held, dir) = dir();
    dir.write("key", 0o600, b"old").unwrap();
    dir.write("key", 0o600, b"new").unwrap();
    dir.write("open", 0o666, b"for all").unwrap();
    assert_eq!(&**dir.read("key", 100).unwrap(), b"new");
    assert_eq!(mode(&dir.path().join("key")), 0o600);
    assert_eq!(mode(&dir.path().join("open")), 0o666, "the umask is undone");
    let mut names = dir.names().unwrap();
    names.sort();
    assert_eq!(names, ["key", "open"]);
}

#[test]
fn a_write_replaces_a_link_and_never_what_it_points_to() {
    let (held, dir) = dir();
    let target = held.path().join("target");
    fs::write(&target, "mine").unwrap();
    symlink(&target, dir.path().join("key")).unwrap();
    assert!(matches!(
        dir.read("key", 100),
        Err(FileError::WrongKind { .. })
    ));
    dir.write("key", 0o600, b"secret").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    assert_eq!(&**dir.read("key", 100).unwrap(), b"secret");
}

#[test]
fn a_failed_write_leaves_the_old_content_and_no_rest() {
    let (_held, dir) = dir();
    fs::create_dir(dir.path().join("taken")).unwrap();
    let error = dir.write("taken", 0o600, b"x").unwrap_err();
    assert!(matches!(error, FileError::Io { .. }), "{error}");
    assert_eq!(dir.names().unwrap(), ["taken"]);
}

#[test]
fn reading_is_bounded_and_only_for_plain_files() {
    let (_held, dir) = dir();
    dir.write("f", 0o600, b"12345").unwrap();
    assert!(matches!(
        dir.read("f", 4),
        Err(FileError::TooLong { limit: 4, .. })
    ));
    assert_eq!(&**dir.read("f", 5).unwrap(), b"12345");
    assert!(dir.read("none", 5).unwrap_err().is_not_found());
    fs::create_dir(dir.path().join("d")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("p"), Mode::S_IRWXU).unwrap();
    for name in ["d", "p"] {
        assert!(matches!(
            dir.read(name, 5),
            Err(FileError::WrongKind { .. })
        ));
    }
}

#[test]
fn names_do_not_leave_the_directory() {
    let (_held, dir) = dir();
    for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\0b"] {
        assert!(
            matches!(dir.write(name, 0o600, b""), Err(FileError::NotAName(_))),
            "{name:?}"
        );
    }
}

#[test]
fn rests_of_a_crash_are_swept_and_removal_is_repeatable() {
    let (_held, dir) = dir();
    dir.write("keep", 0o600, b"").unwrap();
    fs::write(dir.path().join(".keys.json.00ff.tmp"), "half a key").unwrap();
    dir.sweep().unwrap();
    assert_eq!(dir.names().unwrap(), ["keep"]);
    dir.remove("keep").unwrap();
    dir.remove("keep").unwrap();
    assert!(dir.names().unwrap().is_empty());
}

#[test]
fn a_directory_stays_the_same_when_its_path_is_swapped() {
    let (held, dir) = dir();
    let path = dir.path().to_owned();
    fs::rename(&path, held.path().join("moved")).unwrap();
    fs::create_dir(&path).unwrap();
    dir.write("key", 0o600, b"x").unwrap();
    assert!(held.path().join("moved/key").exists());
    assert!(!path.join("key").exists());
}

#[test]
fn a_private_directory_is_made_0700_and_an_open_one_refused() {
    let held = tempfile::tempdir().unwrap();
    let path = held.path().join("a/b/data");
    private_dir(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    for wide in [0o750, 0o701, 0o777] {
        chmod(&path, wide);
        let error = private_dir(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 0700"), "{error}");
    }
    chmod(&path, 0o500);
    private_dir(&path).unwrap();
}

#[test]
fn a_private_directory_behind_a_link_is_refused() {
    let held = tempfile::tempdir().unwrap();
    let real = held.path().join("real");
    private_dir(&real).unwrap();
    let link = held.path().join("link");
    symlink(&real, &link).unwrap();
    assert!(matches!(
        private_dir(&link),
        Err(FileError::WrongKind { .. })
    ));
    fs::write(held.path().join("file"), "").unwrap();
    assert!(matches!(
        private_dir(&held.path().join("file")),
        Err(FileError::WrongKind { .. })
    ));
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    // Root's own directory serves the unprivileged; root has to give one away.
    let held = tempfile::tempdir().unwrap();
    let path = held.path().join("theirs");
    fs::create_dir(&path).unwrap();
    chmod(&path, 0o700);
    let foreign = if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        path
    } else {
        PathBuf::from("/")
    };
    for refused in [private_dir(&foreign), compat_dir(&foreign, 0o755)] {
        assert!(matches!(refused, Err(FileError::WrongOwner { .. })));
    }
}

#[test]
fn a_socket_directory_keeps_its_mode_unless_the_socket_could_be_replaced() {
    let held = tempfile::tempdir().unwrap();
    let path = held.path().join("run/vane");
    socket_dir(&path, 0o775).unwrap_err();
    fs::remove_dir(&path).unwrap();
    socket_dir(&path, 0o755).unwrap();
    assert_eq!(mode(&path), 0o755);
    socket_dir(&path, 0o750).unwrap();
    assert_eq!(mode(&path), 0o755, "shared with another process");
    chmod(&path, 0o777);
    assert!(matches!(
        socket_dir(&path, 0o755),
        Err(FileError::TooOpen { .. })
    ));
}

#[test]
fn a_compat_directory_is_made_below_a_sticky_one_and_found_again() {
    let held = tempfile::tempdir_in("/tmp").unwrap();
    chmod(held.path(), 0o1777);
    let path = held.path().join("spire-agent/public");
    for _ in 0..2 {
        let dir = compat_dir(&path, 0o755).unwrap();
        assert_eq!(dir.path(), path);
    }
    assert_eq!(mode(&held.path().join("spire-agent")), 0o755);
    assert_eq!(mode(&path), 0o755);
}

#[test]
fn a_compat_directory_that_others_prepared_is_refused() {
    let held = tempfile::tempdir_in("/tmp").unwrap();
    let path = held.path().join("spire-server/private");
    compat_dir(&path, 0o700).unwrap();

    chmod(&path, 0o750);
    assert!(matches!(
        compat_dir(&path, 0o700),
        Err(FileError::TooOpen { .. })
    ));
    chmod(&path, 0o700);
    chmod(&held.path().join("spire-server"), 0o777);
    assert!(matches!(
        compat_dir(&path, 0o700),
        Err(FileError::TooOpen { .. })
    ));

    let trap = held.path().join("trap");
    symlink(held.path().join("spire-server"), &trap).unwrap();
    assert!(matches!(
        compat_dir(&trap.join("private"), 0o700),
        Err(FileError::WrongKind { .. })
    ));
    for path in ["tmp/x", "/tmp/../etc", ""] {
        assert!(matches!(
            compat_dir(Path::new(path), 0o700),
            Err(FileError::NotAbsolute(_))
        ));
    }
}

#[test]
fn a_socket_path_may_have_107_bytes() {
    unix_path_check(Path::new(&"x".repeat(107))).unwrap();
    let error = unix_path_check(Path::new(&"ü".repeat(54))).unwrap_err();
    assert!(error.to_string().contains("has 108 bytes"), "{error}");
}

#[test]
fn the_descriptor_limit_is_raised_to_the_hard_one() {
    let before = nofile_limit().unwrap();
    let raised = raise_nofile().unwrap();
    assert!(raised >= before);
    assert_eq!(nofile_limit().unwrap(), raised);
}
