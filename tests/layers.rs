//! The floors of ARCHITECTURE.md, checked.
//!
//! Two rules: a crate names only crates of lower floors in its manifest, and inside a crate a
//! module names only modules of earlier groups (groups of `mod` lines in lib.rs are separated
//! by a blank line, bottom first). The fixtures prove that both checks can fail.

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

fn crate_errors(src: &Path) -> Vec<String> {
    let groups = groups(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let mut errors = Vec::new();
    for file in sources(src) {
        let relative = file.strip_prefix(src).unwrap();
        let first = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        // Tests may reach everywhere: `tests.rs` beside the code is left out.
        if relative.ends_with("tests.rs") {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let production = source.split("#[cfg(test)]").next().unwrap_or_default();
        errors.extend(module_errors(
            relative,
            first.trim_end_matches(".rs"),
            production,
            &groups,
        ));
    }
    errors
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
    let errors: Vec<String> = FLOORS
        .iter()
        .filter(|(package, ..)| *package != "vane-tests")
        .flat_map(|(package, folder, _)| {
            let errors = crate_errors(&root().join(folder).join("src"));
            errors
                .into_iter()
                .map(move |error| format!("{package}: {error}"))
        })
        .collect();
    none(&errors);
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
