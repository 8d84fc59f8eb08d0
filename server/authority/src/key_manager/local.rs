//! Keys in this process: parsed once, exercised once, then used for every signature.
//!
//! Shared by the key managers that hold their keys themselves. The map is behind a short
//! lock; a signature is made outside of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaKeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use vane_identity::key::{KeyError, KeyType, PrivateKey, PublicKey};

use super::{KeyInfo, KeyManagerError, SignRequest, SignatureFormat};

/// After so many signatures of a batch (about half a millisecond on P-256) other tasks of
/// the worker thread get their turn. Signing stays on the thread: a hop to the blocking
/// pool costs what four signatures cost, and a server of two cores has no idle thread to
/// give anyway.
const SIGNATURES_PER_TURN: usize = 16;

/// A private key, ready to sign.
pub(super) struct LocalKey {
    key_type: KeyType,
    private: PrivateKey,
    public: PublicKey,
    pair: Pair,
}

enum Pair {
    Ec {
        asn1: Box<EcdsaKeyPair>,
        fixed: Box<EcdsaKeyPair>,
    },
    Rsa(Box<RsaKeyPair>),
}

impl LocalKey {
    pub(super) fn generate(key_type: KeyType) -> Result<Self, KeyError> {
        let (private, _) = PrivateKey::generate(key_type)?;
        Self::parse(private)
    }

    /// Reads a PKCS#8 key of any supported kind.
    pub(super) fn parse(private: PrivateKey) -> Result<Self, KeyError> {
        let (key_type, pair) = parse_pair(private.pkcs8()).ok_or(KeyError::Malformed)?;
        let public = pair.public().ok_or(KeyError::Malformed)?;
        Ok(Self {
            key_type,
            private,
            public,
            pair,
        })
    }

    pub(super) fn private(&self) -> &PrivateKey {
        &self.private
    }

    pub(super) fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8], format: SignatureFormat) -> Option<Vec<u8>> {
        let rng = SystemRandom::new();
        match (&self.pair, format) {
            (Pair::Ec { asn1, .. }, SignatureFormat::X509) => ec_sign(asn1, &rng, message),
            (Pair::Ec { fixed, .. }, SignatureFormat::Jws) => ec_sign(fixed, &rng, message),
            (Pair::Rsa(pair), _) => {
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &rng, message, &mut out)
                    .ok()?;
                Some(out)
            }
        }
    }

    /// Signs and verifies in both forms.
    pub(super) fn is_sound(&self) -> bool {
        let message = b"vane exercises a key before it is used";
        [SignatureFormat::X509, SignatureFormat::Jws]
            .into_iter()
            .all(|format| {
                let signed = self.sign(message, format);
                let key = UnparsedPublicKey::new(self.verification(format), self.pair.bits());
                signed.is_some_and(|signed| key.verify(message, &signed).is_ok())
            })
    }

    fn verification(&self, format: SignatureFormat) -> &'static dyn VerificationAlgorithm {
        use SignatureFormat::{Jws, X509};
        match (self.key_type, format) {
            (KeyType::EcP256, X509) => &signature::ECDSA_P256_SHA256_ASN1,
            (KeyType::EcP256, Jws) => &signature::ECDSA_P256_SHA256_FIXED,
            (KeyType::EcP384, X509) => &signature::ECDSA_P384_SHA384_ASN1,
            (KeyType::EcP384, Jws) => &signature::ECDSA_P384_SHA384_FIXED,
            (KeyType::Rsa2048 | KeyType::Rsa4096, _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        }
    }
}

fn ec_sign(pair: &EcdsaKeyPair, rng: &SystemRandom, message: &[u8]) -> Option<Vec<u8>> {
    let signed = pair.sign(rng, message).ok()?;
    Some(signed.as_ref().to_vec())
}

impl Pair {
    fn ec(
        asn1: &'static EcdsaSigningAlgorithm,
        fixed: &'static EcdsaSigningAlgorithm,
        pkcs8: &[u8],
    ) -> Option<Self> {
        Some(Self::Ec {
            asn1: Box::new(EcdsaKeyPair::from_pkcs8(asn1, pkcs8).ok()?),
            fixed: Box::new(EcdsaKeyPair::from_pkcs8(fixed, pkcs8).ok()?),
        })
    }

    fn public(&self) -> Option<PublicKey> {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Ec { asn1, .. } => asn1.public_key().as_der().ok()?,
            Self::Rsa(pair) => pair.public_key().as_der().ok()?,
        };
        Some(PublicKey::from_spki(der.as_ref()))
    }

    /// The key as `UnparsedPublicKey` takes it.
    fn bits(&self) -> &[u8] {
        match self {
            Self::Ec { asn1, .. } => asn1.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }
}

fn parse_pair(pkcs8: &[u8]) -> Option<(KeyType, Pair)> {
    let p256 = || {
        Pair::ec(
            &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8,
        )
    };
    let p384 = || {
        Pair::ec(
            &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            pkcs8,
        )
    };
    p256()
        .map(|pair| (KeyType::EcP256, pair))
        .or_else(|| p384().map(|pair| (KeyType::EcP384, pair)))
        .or_else(|| parse_rsa(pkcs8))
}

fn parse_rsa(pkcs8: &[u8]) -> Option<(KeyType, Pair)> {
    let pair = RsaKeyPair::from_pkcs8(pkcs8).ok()?;
    let key_type = match pair.public_modulus_len() {
        len if len == KeySize::Rsa2048.len() => KeyType::Rsa2048,
        len if len == KeySize::Rsa4096.len() => KeyType::Rsa4096,
        _ => return None,
    };
    Some((key_type, Pair::Rsa(Box::new(pair))))
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKey({:?})", self.key_type)
    }
}

/// The keys of a local key manager, by name.
pub(super) type KeyMap = BTreeMap<String, Arc<LocalKey>>;

/// The keys of a local key manager.
#[derive(Debug, Default)]
pub(super) struct LocalKeys(RwLock<KeyMap>);

impl LocalKeys {
    pub(super) fn new(keys: KeyMap) -> Self {
        Self(RwLock::new(keys))
    }

    /// A copy of the map; the keys are shared.
    pub(super) fn all(&self) -> KeyMap {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.clone()
    }

    pub(super) fn replace(&self, keys: KeyMap) {
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *guard = keys;
    }

    pub(super) fn infos(&self) -> Vec<KeyInfo> {
        let info = |(key_ref, key): (String, Arc<LocalKey>)| KeyInfo {
            key_ref,
            key_type: key.key_type,
            public_key: key.public.clone(),
        };
        self.all().into_iter().map(info).collect()
    }

    fn get(&self, key_ref: &str) -> Result<Arc<LocalKey>, KeyManagerError> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(key_ref)
            .cloned()
            .ok_or_else(|| KeyManagerError::NoKey(key_ref.to_owned()))
    }

    /// Signs the batch, giving other tasks a turn now and then.
    pub(super) async fn sign(
        &self,
        requests: &[SignRequest<'_>],
    ) -> Result<Vec<Vec<u8>>, KeyManagerError> {
        let mut signatures = Vec::with_capacity(requests.len());
        let mut turns = requests.chunks(SIGNATURES_PER_TURN).peekable();
        while let Some(turn) = turns.next() {
            for request in turn {
                signatures.push(self.sign_one(request)?);
            }
            if turns.peek().is_some() {
                tokio::task::yield_now().await;
            }
        }
        Ok(signatures)
    }

    fn sign_one(&self, request: &SignRequest<'_>) -> Result<Vec<u8>, KeyManagerError> {
        self.get(request.key_ref)?
            .sign(request.message, request.format)
            .ok_or_else(|| KeyManagerError::Sign(request.key_ref.to_owned()))
    }
}

/// Generates off the async threads: an RSA key takes up to seconds.
pub(super) async fn generate(
    key_ref: &str,
    key_type: KeyType,
) -> Result<LocalKey, KeyManagerError> {
    let made = tokio::task::spawn_blocking(move || LocalKey::generate(key_type)).await;
    let made = made.map_err(|_| KeyManagerError::Stopping)?;
    let key = made.map_err(|source| KeyManagerError::Key {
        key_ref: key_ref.to_owned(),
        source,
    })?;
    if !key.is_sound() {
        return Err(KeyManagerError::Broken(key_ref.to_owned()));
    }
    Ok(key)
}
