//! The agent's own SVID: kept on disk, attested for once, renewed in time.
//!
//! Files are SPIRE's (NAMES 12): `keys.json` `{"keys":{"agent-svid-A":…}}` and
//! `agent-data.json` `{"svid","bundle","reattestable"}` (PEM), with `received_at` of ours. The
//! key is written before the SVID; at start the key that fits the certificate is taken.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use vane_chassis::files::{Dir, FileError};
use vane_identity::bundle::Bundle;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::PrivateKey;
use vane_identity::lifetime::{Jitter, Validity, from_unix, is_due, renewal, to_unix};
use vane_identity::x509_svid::{Certificate, X509Error, X509Svid};
use zeroize::{Zeroize as _, Zeroizing};

use crate::health::DiskTrouble;
use crate::pem;

const KEYS: &str = "keys.json";
const DATA: &str = "agent-data.json";
const NAMES: [&str; 2] = ["agent-svid-A", "agent-svid-B"];
const LIMIT: u64 = 4 * 1024 * 1024;

/// The agent's SVID with its key.
#[derive(Debug, Clone)]
pub struct OwnSvid {
    /// Its ID.
    pub id: SpiffeId,
    /// The chain, leaf first.
    pub chain: Vec<Certificate>,
    /// The key.
    pub key: PrivateKey,
    /// When it was received.
    pub received_at: SystemTime,
    /// Its first valid instant.
    pub not_before: SystemTime,
    /// Its last valid instant.
    pub not_after: SystemTime,
    /// Whether the node may attest again by itself.
    pub reattestable: bool,
}

/// Why what is on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The files cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file has not the form that it should have.
    #[error("{file} in the agent's data_dir cannot be read: {why}; move it away to attest anew")]
    Malformed {
        /// The file.
        file: &'static str,
        /// What is wrong.
        why: String,
    },
}

#[derive(Default, Serialize, Deserialize)]
struct Keys {
    keys: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Data {
    #[serde(default)]
    svid: String,
    #[serde(default)]
    bundle: String,
    #[serde(default)]
    reattestable: bool,
    #[serde(default)]
    received_at: i64,
}

/// The two files.
#[derive(Debug)]
pub struct Disk {
    dir: Dir,
    trust_domain: TrustDomain,
    trouble: Mutex<Option<DiskTrouble>>,
}

/// What was on disk.
#[derive(Debug, Default)]
pub struct Kept {
    /// The agent's ID, as the SVID says it, whether its key is there or not.
    pub id: Option<SpiffeId>,
    /// The SVID, when there is one whose key is there.
    pub svid: Option<OwnSvid>,
    /// A key without SVID: one whose attestation was not answered.
    pub key: Option<PrivateKey>,
    /// The bundle.
    pub bundle: Option<Bundle>,
}

impl OwnSvid {
    /// Puts chain and key together.
    ///
    /// # Errors
    /// The chain's leaf has not the shape of an X.509-SVID.
    pub fn new(
        chain: Vec<Certificate>,
        key: PrivateKey,
        reattestable: bool,
        received_at: SystemTime,
    ) -> Result<Self, X509Error> {
        let svid = X509Svid::parse(chain)?;
        Ok(Self {
            id: svid.id().clone(),
            not_before: svid.leaf().validity.not_before,
            not_after: svid.leaf().validity.not_after,
            chain: svid.chain().to_vec(),
            key,
            received_at,
            reattestable,
        })
    }
}

impl OwnSvid {
    /// When it is renewed.
    #[must_use]
    pub fn renew_at(&self, jitter: Jitter) -> SystemTime {
        let validity = Validity {
            not_before: self.not_before,
            not_after: self.not_after,
        };
        renewal(self.received_at, validity, jitter)
    }

    /// Whether it is renewed at `now` when its time is `due`; at once when the clock was set
    /// back to before its reception.
    #[must_use]
    pub fn is_due(&self, due: SystemTime, now: SystemTime) -> bool {
        is_due(self.received_at, due, now)
    }
}

impl Disk {
    /// The files in `dir`.
    #[must_use]
    pub fn new(dir: Dir, trust_domain: TrustDomain) -> Self {
        Self {
            dir,
            trust_domain,
            trouble: Mutex::new(None),
        }
    }

    /// What could not be written last; none when all was.
    #[must_use]
    pub fn trouble(&self) -> Option<DiskTrouble> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, file: &'static str, text: &[u8]) -> Result<(), DiskError> {
        let written = self.dir.write(file, 0o600, text);
        let trouble = written.as_ref().err().map(|error| DiskTrouble {
            text: error.to_string(),
            full: error.is_full(),
        });
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        Ok(written?)
    }

    /// What is there.
    ///
    /// # Errors
    /// [`DiskError`]: nothing was changed.
    pub fn load(&self) -> Result<Kept, DiskError> {
        let data: Data = self.read(DATA)?;
        let keys = self.keys()?;
        let bundle = certificates(DATA, &data.bundle)?;
        let bundle = (!bundle.is_empty()).then(|| {
            let mut kept = Bundle::empty(self.trust_domain.clone());
            kept.x509_authorities = bundle
                .into_iter()
                .map(vane_identity::bundle::X509Authority::new)
                .collect();
            kept
        });
        let chain = certificates(DATA, &data.svid)?;
        if chain.is_empty() {
            return Ok(Kept {
                id: None,
                key: keys.into_values().next(),
                bundle,
                svid: None,
            });
        }
        let malformed = |error: X509Error| DiskError::Malformed {
            file: DATA,
            why: error.to_string(),
        };
        let spki = chain
            .first()
            .map(Certificate::info)
            .transpose()
            .map_err(malformed)?
            .map(|info| info.spki);
        let id = X509Svid::parse(chain.clone()).ok();
        let id = id.map(|svid| svid.id().clone());
        let fitting = keys.into_values().find(|key| public_key(key) == spki);
        let svid = fitting
            .map(|key| OwnSvid::new(chain, key, data.reattestable, from_unix(data.received_at)));
        Ok(Kept {
            id,
            svid: svid.transpose().map_err(malformed)?,
            key: None,
            bundle,
        })
    }

    /// Keeps a key before anything is asked for it. The slot that `current` is not in is used.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_key(
        &self,
        key: &PrivateKey,
        current: Option<&PrivateKey>,
    ) -> Result<(), DiskError> {
        let mut keys = self.keys()?;
        let taken = |name: &str| {
            current.is_some_and(|current| {
                keys.get(name)
                    .is_some_and(|held| held.pkcs8() == current.pkcs8())
            })
        };
        let free = NAMES
            .into_iter()
            .find(|name| !taken(name))
            .unwrap_or(NAMES[0]);
        keys.insert(free.to_owned(), key.clone());
        let mut file = Keys {
            keys: keys
                .iter()
                .map(|(name, key)| (name.clone(), STANDARD.encode(key.pkcs8())))
                .collect(),
        };
        let text =
            Zeroizing::new(serde_json::to_vec(&file).map_err(|error| malformed(KEYS, &error))?);
        file.keys.values_mut().for_each(|text| text.zeroize());
        self.write(KEYS, &text)
    }

    /// Keeps the SVID and the bundle; its key was kept before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, svid: Option<&OwnSvid>, bundle: Option<&Bundle>) -> Result<(), DiskError> {
        let roots = bundle.map(|bundle| {
            bundle
                .x509_authorities
                .iter()
                .map(|one| one.certificate.to_pem())
                .collect()
        });
        let data = Data {
            svid: svid
                .map(|svid| svid.chain.iter().map(|one| one.to_pem()).collect())
                .unwrap_or_default(),
            bundle: roots.unwrap_or_default(),
            reattestable: svid.is_some_and(|svid| svid.reattestable),
            received_at: svid
                .map(|svid| to_unix(svid.received_at))
                .unwrap_or_default(),
        };
        let text = serde_json::to_vec(&data).map_err(|error| malformed(DATA, &error))?;
        self.write(DATA, &text)
    }

    /// Removes SVID and keys: the server denied this agent for good.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub fn forget(&self) -> Result<(), DiskError> {
        self.dir.remove(DATA)?;
        Ok(self.dir.remove(KEYS)?)
    }

    fn keys(&self) -> Result<BTreeMap<String, PrivateKey>, DiskError> {
        let mut file: Keys = self.read(KEYS)?;
        let mut keys = BTreeMap::new();
        for (name, text) in &mut file.keys {
            let der = STANDARD
                .decode(text.as_bytes())
                .map_err(|error| malformed(KEYS, &error))?;
            text.zeroize();
            keys.insert(name.clone(), PrivateKey::from_pkcs8(der));
        }
        Ok(keys)
    }

    fn read<T: Default + for<'de> Deserialize<'de>>(
        &self,
        file: &'static str,
    ) -> Result<T, DiskError> {
        match self.dir.read(file, LIMIT) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| malformed(file, &error)),
            Err(error) if error.is_not_found() => Ok(T::default()),
            Err(error) => Err(error.into()),
        }
    }
}

fn malformed(file: &'static str, why: &impl ToString) -> DiskError {
    DiskError::Malformed {
        file,
        why: why.to_string(),
    }
}

fn certificates(file: &'static str, text: &str) -> Result<Vec<Certificate>, DiskError> {
    pem::certificates(text).map_err(|error| malformed(file, &error))
}

fn public_key(key: &PrivateKey) -> Option<Vec<u8>> {
    let pair = rcgen::KeyPair::try_from(key.pkcs8()).ok()?;
    Some(rcgen::PublicKeyData::subject_public_key_info(&pair))
}

#[cfg(test)]
mod tests;
