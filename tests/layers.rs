//! The floors of ARCHITECTURE.md, checked.
//!
//! Three rules: a crate names only crates of lower floors in its manifest; inside a crate a
//! module names only modules of earlier groups (groups of `mod` lines in lib.rs are separated
//! by a blank line, bottom first); and only the modules at the door name tonic or a generated
//! type. The fixtures prove that each check can fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Package -> folder, floor, and what it may name.
const FLOORS: &[(&str, &str, u8)] = &[
    ("vane-identity", "proto/identity", 0),
    ("vane-wire", "proto/wire", 1),
    ("vane-chassis", "proto/chassis", 1),
    ("vane-client", "proto/client", 2),
    ("vane-attest", "proto/attest", 2),
    ("vane-store", "server/store", 2),
    ("vane-authority", "server/authority", 3),
    ("vane-server", "server", 4),
    ("vane-agent", "agent", 4),
    ("vane", "server/ctl", 5),
    ("vane-tests", "tests", 6),
];

/// Crates that may name tonic (DESIGN section 2).
const MAY_NAME_TONIC: &[&str] = &[
    "vane-wire",
    "vane-client",
    "vane-server",
    "vane-agent",
    "vane",
    "vane-tests",
];

/// The packages whose every module may: they are the door, or they print messages as they are.
const ALL_DOOR: &[&str] = &["vane-wire", "vane-client", "vane"];

/// The modules of the others that may name tonic or a generated type (DESIGN section 2).
const DOOR: &[(&str, &[&str])] = &[
    ("vane-server", &["api"]),
    ("vane-agent", &["api", "csi", "issue", "link", "node"]),
];

/// The adapter of a foreign gRPC protocol, by its file (DESIGN section 2).
const ADAPTERS: &[(&str, &[&str])] = &[("vane-agent", &["workload/k8s/cri.rs"])];

/// Modules that may name generated types, though not tonic: the agent's set is kept as the
/// stream has it, and a snapshot holds the messages that all its readers get, encoded once.
const HOLDS_MESSAGES: &[(&str, &[&str])] = &[("vane-agent", &["registry", "snapshot"])];

/// How a path to a generated type begins, after `vane_wire::`.
const GENERATED: &[&str] = &[
    "spire",
    "vane",
    "workload",
    "envoy",
    "google",
    "csi",
    "pluginregistration",
    "runtime",
    "generated",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn floor(package: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(name, ..)| *name == package)
        .map(|(.., floor)| *floor)
}

/// The dependencies of a manifest, without those of its tests.
fn dependencies(manifest: &str) -> Vec<String> {
    let table: toml::Table = manifest.parse().unwrap();
    let of = |section: &str| table.get(section).and_then(|it| it.as_table()).cloned();
    of("dependencies")
        .into_iter()
        .chain(of("build-dependencies"))
        .flat_map(|it| it.into_iter().map(|(name, _)| name))
        .collect()
}

fn manifest_errors(package: &str, manifest: &str) -> Vec<String> {
    let own = floor(package).unwrap_or_else(|| panic!("{package} has no floor"));
    let mut errors = Vec::new();
    for name in dependencies(manifest) {
        if floor(&name).is_some_and(|other| other >= own) {
            errors.push(format!(
                "{package} (floor {own}) names {name}, which is not lower"
            ));
        }
        if name == "tonic" && !MAY_NAME_TONIC.contains(&package) {
            errors.push(format!("{package} names tonic"));
        }
    }
    errors
}

/// Module -> number of its group, from the `mod` lines of a lib.rs.
fn groups(lib: &str) -> BTreeMap<String, usize> {
    let (mut group, mut all) = (0, BTreeMap::new());
    for line in lib.lines().map(str::trim) {
        if line.is_empty() {
            group += 1;
        }
        let module = line
            .strip_prefix("pub mod ")
            .or_else(|| line.strip_prefix("pub(crate) mod "))
            .or_else(|| line.strip_prefix("mod "));
        if let Some(name) = module.and_then(|rest| rest.strip_suffix(';')) {
            all.insert(name.to_owned(), group);
        }
    }
    all
}

/// `crate::a` and `crate::{a, b}` paths of a source, with their line numbers.
fn crate_paths(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, line) in source.lines().enumerate() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for rest in line.split("crate::").skip(1) {
            let names = rest
                .strip_prefix('{')
                .map_or(rest, |inner| inner.split('}').next().unwrap_or(inner));
            let braces = rest.starts_with('{');
            for (index, name) in names.split(',').enumerate() {
                if index == 0 || braces {
                    let word: String = name
                        .trim()
                        .chars()
                        .take_while(|c| c.is_alphanumeric() || *c == '_')
                        .collect();
                    found.push((at + 1, word));
                }
            }
        }
    }
    found
}

fn module_errors(
    file: &Path,
    module: &str,
    source: &str,
    groups: &BTreeMap<String, usize>,
) -> Vec<String> {
    let Some(own) = groups.get(module) else {
        return Vec::new();
    };
    let wrong = |name: &str| name != module && groups.get(name).is_some_and(|other| other >= own);
    crate_paths(source)
        .into_iter()
        .filter(|(_, name)| wrong(name))
        .map(|(line, name)| {
            format!(
                "{}:{line}: `{module}` names `{name}`, which stands in no earlier group",
                file.display()
            )
        })
        .collect()
}

fn is_listed(list: &[(&str, &[&str])], package: &str, module: &str) -> bool {
    list.iter()
        .any(|(name, modules)| *name == package && modules.contains(&module))
}

fn code_lines(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = source.lines().enumerate().map(|(at, line)| (at + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether a line names tonic or one of its companions.
fn names_tonic(line: &str) -> bool {
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    words.any(|word| {
        let first = word.trim_start_matches(':').split("::").next();
        let is_path = word.contains("::");
        first.is_some_and(|it| is_path && (it == "tonic" || it.starts_with("tonic_")))
            || word.trim_start_matches(':') == "tonic"
    })
}

/// Whether a line names a generated type, or all of `vane_wire` by a brace.
fn names_generated(line: &str) -> bool {
    let mut paths = line.split("vane_wire::").skip(1);
    paths.any(|path| {
        let names = path.strip_prefix('{').unwrap_or(path).split([',', '}']);
        let words = names.map(|name| name.trim().split("::").next().unwrap_or_default());
        let braces = path.starts_with('{');
        let mut words = words.take(if braces { usize::MAX } else { 1 });
        words.any(|word| {
            let word = word.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '_');
            GENERATED.contains(&word)
        })
    })
}

fn is_adapter(package: &str, file: &Path) -> bool {
    let mut adapters = ADAPTERS.iter().filter(|(name, _)| *name == package);
    adapters.any(|(_, files)| files.iter().any(|adapter| file.ends_with(adapter)))
}

fn door_errors(package: &str, file: &Path, module: &str, source: &str) -> Vec<String> {
    if is_adapter(package, file) {
        return Vec::new();
    }
    if ALL_DOOR.contains(&package) || is_listed(DOOR, package, module) {
        return Vec::new();
    }
    let may_hold = is_listed(HOLDS_MESSAGES, package, module);
    let wrong = |line: &str| match (names_tonic(line), names_generated(line) && !may_hold) {
        (true, _) => Some("tonic"),
        (false, true) => Some("a generated type"),
        (false, false) => None,
    };
    code_lines(source)
        .filter_map(|(at, line)| Some((at, wrong(line)?)))
        .map(|(at, what)| format!("{}:{at}: `{module}` names {what}", file.display()))
        .collect()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            all.push(path);
        }
    }
    all
}

/// Path in the crate, top module and production code of each file. Tests may reach everywhere:
/// what is compiled for them only is left out.
fn production(src: &Path) -> Vec<(PathBuf, String, String)> {
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let mut all = Vec::new();
    for file in sources(src) {
        let relative = file.strip_prefix(src).unwrap().to_owned();
        let first = relative.components().next().unwrap().as_os_str();
        let module = first.to_str().unwrap().trim_end_matches(".rs").to_owned();
        let in_tests = relative
            .components()
            .any(|one| matches!(one.as_os_str().to_str(), Some("tests.rs" | "tests")));
        if in_tests || lib.contains(&format!("#[cfg(test)]\nmod {module};")) {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let code = source
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        all.push((relative, module, code.to_owned()));
    }
    all
}

fn crate_errors(src: &Path) -> Vec<String> {
    let groups = groups(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let files = production(src).into_iter();
    files
        .flat_map(|(file, module, code)| module_errors(&file, &module, &code, &groups))
        .collect()
}

/// What `check` finds in each package but that of the tests, with the package's name.
fn in_all_packages(check: impl Fn(&str, &Path) -> Vec<String>) -> Vec<String> {
    let packages = FLOORS
        .iter()
        .filter(|(package, ..)| *package != "vane-tests");
    packages
        .flat_map(|(package, folder, _)| {
            let errors = check(package, &root().join(folder).join("src"));
            errors
                .into_iter()
                .map(move |error| format!("{package}: {error}"))
        })
        .collect()
}

fn none(errors: &[String]) {
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}

#[test]
fn crates_name_only_crates_of_lower_floors() {
    let manifest =
        |folder: &str| fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let errors: Vec<String> = FLOORS
        .iter()
        .flat_map(|(package, folder, _)| manifest_errors(package, &manifest(folder)))
        .collect();
    none(&errors);
}

#[test]
fn every_member_of_the_workspace_has_a_floor() {
    let table: toml::Table = fs::read_to_string(root().join("Cargo.toml"))
        .unwrap()
        .parse()
        .unwrap();
    for member in table["workspace"]["members"].as_array().unwrap() {
        let folder = member.as_str().unwrap();
        assert!(
            FLOORS.iter().any(|(_, known, _)| *known == folder),
            "{folder} has no floor"
        );
    }
}

#[test]
fn modules_name_only_modules_of_earlier_groups() {
    none(&in_all_packages(|_, src| crate_errors(src)));
}

#[test]
fn only_the_modules_at_the_door_name_tonic_or_a_generated_type() {
    none(&in_all_packages(|package, src| {
        let files = production(src).into_iter();
        files
            .flat_map(|(file, module, code)| door_errors(package, &file, &module, &code))
            .collect()
    }));
}

#[test]
fn each_module_at_the_door_exists() {
    for (package, modules) in DOOR.iter().chain(HOLDS_MESSAGES) {
        let (_, folder, _) = FLOORS.iter().find(|(name, ..)| name == package).unwrap();
        let lib = fs::read_to_string(root().join(folder).join("src/lib.rs")).unwrap();
        let known = groups(&lib);
        for module in *modules {
            assert!(known.contains_key(*module), "{package} has no {module}");
        }
    }
    for (package, files) in ADAPTERS {
        let (_, folder, _) = FLOORS.iter().find(|(name, ..)| name == package).unwrap();
        let src = root().join(folder).join("src");
        files
            .iter()
            .for_each(|file| assert!(src.join(file).exists(), "{file}"));
    }
}

#[test]
fn a_wrong_manifest_is_found() {
    let upward = "[dependencies]\nvane-server.workspace = true\ntonic.workspace = true\n";
    assert_eq!(manifest_errors("vane-store", upward).len(), 2);
    let sideways = "[dependencies]\nvane-agent = { path = \"../agent\" }\n";
    assert_eq!(manifest_errors("vane-server", sideways).len(), 1);
    let downward = "[dependencies]\nvane-identity.workspace = true\n";
    assert_eq!(manifest_errors("vane-store", downward).len(), 0);
}

#[test]
fn a_wrong_module_path_is_found() {
    let groups = groups("pub mod low;\nmod also_low;\n\npub mod high;\n");
    let errors = |module, source| module_errors(Path::new("x.rs"), module, source, &groups).len();
    assert_eq!(errors("low", "use crate::high::Thing;"), 1);
    assert_eq!(errors("low", "use crate::{also_low, high};"), 2);
    assert_eq!(errors("low", "use crate::low::Own;\n// crate::high\n"), 0);
    assert_eq!(errors("high", "use crate::{low, also_low::X};"), 0);
}

#[test]
fn tonic_beyond_the_door_is_found() {
    let errors =
        |package, module, source| door_errors(package, Path::new("x.rs"), module, source).len();
    let wrong = [
        "use tonic::Status;",
        "    fn f() -> Result<(), tonic::Status> {",
        "use ::tonic::{Code, Status};",
        "use tonic as grpc;",
        "use tonic_health::pb;",
        "use vane_wire::spire::api::types;",
        "use vane_wire::{record, vane};",
        "use vane_wire::workload;",
    ];
    for line in wrong {
        assert_eq!(errors("vane-server", "state", line), 1, "{line}");
        assert_eq!(errors("vane-server", "api", line), 0, "{line}");
        assert_eq!(errors("vane-agent", "link", line), 0, "{line}");
        assert_eq!(errors("vane", "entry", line), 0, "{line}");
    }
    let right = [
        "// tonic::Status is not named here",
        "use vane_wire::record::entry;",
        "use vane_wire::{record, status::Reason};",
        "use crate::tectonic::Plate;",
        "let text = vane_wire::json::entries(&text);",
    ];
    for line in right {
        assert_eq!(errors("vane-server", "state", line), 0, "{line}");
    }
    let adapter = |package| {
        door_errors(
            package,
            Path::new("src/workload/k8s/cri.rs"),
            "workload",
            wrong[0],
        )
    };
    assert_eq!(adapter("vane-agent").len(), 0);
    assert_eq!(adapter("vane-server").len(), 1);
    assert_eq!(errors("vane-agent", "workload", wrong[0]), 1);
    let message = "use vane_wire::vane::sync::v1::Hello;";
    assert_eq!(errors("vane-agent", "registry", message), 0);
    assert_eq!(errors("vane-agent", "registry", "use tonic::Code;"), 1);
    assert_eq!(errors("vane-agent", "cache", message), 1);
}
