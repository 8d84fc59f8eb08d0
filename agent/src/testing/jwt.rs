//! The JWT side of the server for tests: one key, tokens counted.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tonic::Status;
use vane_chassis::clock::{Clock as _, Manual};
use vane_identity::bundle::{Bundle, JwtAuthority};
use vane_identity::key::PublicKey;
use vane_identity::lifetime::to_unix;
use vane_wire::spire::api::server::svid::v1::{NewJwtsvidRequest, NewJwtsvidResponse};
use vane_wire::spire::api::types;

use super::{Fake, Running, Served, soon};
use crate::counters::Counters;
use crate::jwt::{self, JwtCache, Tokens};
use crate::sealed::Token;

/// How long its tokens live.
pub(crate) const JWT_TTL: Duration = Duration::from_secs(300);

/// Signs tokens; the key ID is `k1` until it is told another one.
#[derive(Clone)]
pub(crate) struct JwtSigner {
    key: Arc<EcdsaKeyPair>,
    key_id: Arc<Mutex<String>>,
}

impl JwtSigner {
    pub(super) fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self {
            key: Arc::new(key),
            key_id: Arc::new(Mutex::new("k1".to_owned())),
        }
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &serde_json::Value) -> String {
        let header = serde_json::json!({
            "alg": "ES256", "kid": *self.key_id.lock().unwrap(), "typ": "JWT",
        });
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature.unwrap().as_ref());
        format!("{signed}.{signature}")
    }

    fn public(&self) -> PublicKey {
        let der: PublicKeyX509Der<'_> = self.key.public_key().as_der().unwrap();
        PublicKey::from_spki(der.as_ref())
    }
}

impl Fake {
    /// The own bundle with the JWT key; tainted or not.
    pub(crate) fn jwt_bundle(&self, tainted: bool) -> Bundle {
        let mut bundle = self.bundle(false);
        bundle.sequence_number = 10 + u64::from(tainted);
        bundle.jwt_authorities = vec![JwtAuthority {
            key_id: self.jwt.key_id.lock().unwrap().clone(),
            public_key: self.jwt.public(),
            expires_at: 0,
            tainted,
        }];
        bundle
    }

    /// Signs as the server does.
    pub(crate) fn signer(&self) -> JwtSigner {
        self.jwt.clone()
    }

    /// From now on tokens have this key ID.
    pub(crate) fn new_jwt_key(&self, key_id: &str) {
        *self.jwt.key_id.lock().unwrap() = key_id.to_owned();
    }

    /// The JWT-SVIDs of a cache, kept within `bounds`.
    pub(crate) fn jwt_cache(&self, running: &Running, bounds: jwt::Bounds) -> Tokens {
        self.jwt_cache_of(running, bounds, &[])
    }

    /// One that begins with what was sealed.
    pub(crate) fn jwt_cache_of(
        &self,
        running: &Running,
        bounds: jwt::Bounds,
        kept: &[Arc<Token>],
    ) -> Tokens {
        let (cache, tokens) = JwtCache::new(jwt::Deps {
            clock: Arc::<Manual>::clone(&self.clock),
            snapshots: running.reader.snapshots(),
            server: running.reader.server(),
            bounds,
            sealer: None,
            counters: Counters::default(),
        });
        let (cache, stop) = (cache.restore(kept), self.stop.clone());
        self.tasks.spawn(async move {
            let _ = cache.run(stop).await;
        });
        tokens
    }

    /// `entry:audience,audience` of the next token that was asked for.
    pub(crate) async fn token(&mut self) -> String {
        soon(self.tokens.recv()).await.unwrap()
    }

    /// Whether no token was asked for that [`Fake::token`] has not told.
    pub(crate) fn is_quiet_about_tokens(&mut self) -> bool {
        self.tokens.try_recv().is_err()
    }
}

impl Served {
    /// A token, counted; refused for a refused entry, and for `server`.
    pub(super) fn sign_jwt(
        &self,
        request: NewJwtsvidRequest,
    ) -> Result<NewJwtsvidResponse, Status> {
        let NewJwtsvidRequest { entry_id, audience } = request;
        let told = format!("{entry_id}:{}", audience.join(","));
        let _ = self.tokens.send(told);
        let refused = self.refused.lock().unwrap().clone();
        if refused.contains(&entry_id) {
            return Err(Status::not_found("entry not found or not authorized"));
        }
        if refused.contains("server") {
            return Err(Status::unavailable("server is initializing"));
        }
        let now = to_unix(self.clock.now());
        let ttl = i64::try_from(JWT_TTL.as_secs()).unwrap();
        // A number makes each token another one.
        let token = self.jwt.sign(&serde_json::json!({
            "sub": format!("spiffe://example.org/{entry_id}"), "aud": audience,
            "iat": now, "exp": now + ttl, "n": fastrand::u32(..),
        }));
        let svid = types::Jwtsvid {
            token,
            ..types::Jwtsvid::default()
        };
        Ok(NewJwtsvidResponse { svid: Some(svid) })
    }
}
