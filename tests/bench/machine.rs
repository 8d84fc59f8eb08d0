//! Where and how it was measured.

use std::collections::BTreeMap;
use std::fs;

/// The profile of this program and of those beside it, by the folder that they are in.
pub(crate) fn profile() -> String {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(|dir| dir.file_name());
    folder.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Machine, kernel, load and profile.
pub(crate) fn conditions() -> BTreeMap<&'static str, String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    BTreeMap::from([
        ("cpu", format!("{}, {cores} cores", cpu())),
        ("kernel", line("/proc/sys/kernel/osrelease")),
        ("load before", load()),
        ("profile", profile()),
    ])
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(": "));
    model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned())
}

fn load() -> String {
    let line = line("/proc/loadavg");
    line.split(' ').next().unwrap_or_default().to_owned()
}

fn line(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
