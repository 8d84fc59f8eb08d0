//! Compiles `protos/` to Rust with protox, so that no protoc is needed and nothing
//! generated is committed.
//!
//! Writes the modules that `src/generated.rs` includes, and `wire.bin`: the descriptors of
//! what travels, which reflection serves. The records of `vane.store` and `vane.agent` are not in
//! it, nor is what only the kubelet asks, or what we only call.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use protox::prost::Message;

/// The foreign files first, so that they are known by the names they are imported by.
const ROOTS: [&str; 2] = ["protos/foreign", "protos"];

/// Byte fields that hold no secret, so they may share memory (`Bytes`). Everything else is
/// `Vec<u8>`, which can be zeroized.
const SHARED_BYTES: [&str; 17] = [
    ".X509SVIDResponse.crl",
    ".X509SVIDResponse.federated_bundles",
    ".X509SVID.x509_svid",
    ".X509SVID.bundle",
    ".X509BundlesResponse",
    ".JWTBundlesResponse",
    ".spire.api.types.X509Certificate",
    ".spire.api.types.JWTKey",
    ".spire.api.types.WITKey",
    ".spire.api.types.X509SVID",
    ".spire.api.server.svid.v1",
    ".spire.api.server.agent.v1.AgentX509SVIDParams",
    ".spire.api.agent.delegatedidentity.v1.SubscribeToX509BundlesResponse",
    ".spire.api.agent.delegatedidentity.v1.SubscribeToJWTBundlesResponse",
    ".vane.sync.v1",
    ".vane.store.v1.X509Authority",
    ".vane.store.v1.KeyAuthority",
];

/// Messages that hold a key or a bearer token: their `Debug` is written by hand in
/// `src/redacted.rs`.
const SECRET_MESSAGES: [&str; 12] = [
    ".vane.agent.v1.X509Svid",
    ".vane.agent.v1.JwtSvid",
    ".X509SVID",
    ".WITSVID",
    ".JWTSVID",
    ".ValidateJWTSVIDRequest",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.types.AttestationData",
    ".spire.api.types.JoinToken",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.WITSVID",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
];

/// The packages of records, of the sockets between kubelet and driver, and of what we only call.
const NOT_REFLECTED: [&str; 6] = [
    "vane.store.v1",
    "vane.agent.v1",
    "csi.v1",
    "pluginregistration",
    "runtime.v1",
    "runtime.v1alpha2",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=protos");
    let mut compiler = protox::Compiler::new(ROOTS)?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(proto_files()?)?;
    write_descriptors(&compiler)?;
    generate(compiler.file_descriptor_set())?;
    Ok(())
}

fn generate(files: tonic_prost_build::FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    let mut config = tonic_prost_build::Config::new();
    config
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .btree_map(["."])
        .bytes(SHARED_BYTES)
        .skip_debug(SECRET_MESSAGES);
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .compile_fds_with_config(files, config)?;
    Ok(())
}

/// Comments are left out: they would only make the programs larger.
fn write_descriptors(compiler: &protox::Compiler) -> Result<(), Box<dyn Error>> {
    let mut files = compiler.file_descriptor_set();
    files
        .file
        .retain(|file| !NOT_REFLECTED.contains(&file.package()));
    for file in &mut files.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("wire.bin"), files.encode_to_vec())?;
    Ok(())
}

fn proto_files() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    collect(Path::new("protos"), &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            found.push(path);
        }
    }
    Ok(())
}
