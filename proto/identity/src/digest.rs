//! Digests of the set of entries and the set of bundles that an agent holds, so that a
//! resumed stream can tell by 16 bytes whether anything differs.
//!
//! A digest is the sum, wrapping at 2^128, of one number per member. So it does not depend
//! on order, and a member is added and taken away in constant time: the digest of a union
//! of disjoint sets is the sum of theirs. It detects accidents and is no commitment: who
//! can choose members can make sums collide.
//!
//! The number of a member is the first 16 bytes, little endian, of a SHA-256:
//! * entry: `"vane.sync.set.v1"`, u32 length of the id, id, i64 revision number, i64 creation
//!   time (Unix seconds);
//! * bundle: `"vane.sync.bundle.v1"`, u32 length of the trust domain, trust domain, SHA-256 of
//!   the canonical form: u64 sequence number, i64 refresh hint, u32 count of X.509
//!   authorities, each u32 length, DER, u8 tainted; u32 count of JWT authorities, each u32
//!   length, key id, u32 length, DER, i64 expiry, u8 tainted.
//!
//! Integers in a hash are big endian; a digest on the wire is little endian.

use aws_lc_rs::digest::{Context, SHA256};

use crate::bundle::Bundle;

/// Bytes of a digest on the wire.
pub const DIGEST_BYTES: usize = 16;

const ENTRY_LABEL: &[u8] = b"vane.sync.set.v1";
const BUNDLE_LABEL: &[u8] = b"vane.sync.bundle.v1";

/// The digest of a set; [`Digest::EMPTY`] of the empty one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Digest(u128);

/// What one member adds to the digest of its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member(u128);

impl Digest {
    /// The digest of the empty set.
    pub const EMPTY: Self = Self(0);

    /// Takes a member in.
    pub fn add(&mut self, member: Member) {
        self.0 = self.0.wrapping_add(member.0);
    }

    /// Takes a member out that was taken in before.
    pub fn remove(&mut self, member: Member) {
        self.0 = self.0.wrapping_sub(member.0);
    }

    /// Takes in all members of a set that has none in common with this one.
    pub fn add_all(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// The form on the wire, little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; DIGEST_BYTES] {
        self.0.to_le_bytes()
    }

    /// Reads the form on the wire; no bytes at all are the empty set's. `None` when the length
    /// is neither 0 nor [`DIGEST_BYTES`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::EMPTY);
        }
        let bytes = <[u8; DIGEST_BYTES]>::try_from(bytes).ok()?;
        Some(Self(u128::from_le_bytes(bytes)))
    }
}

impl FromIterator<Member> for Digest {
    fn from_iter<I: IntoIterator<Item = Member>>(members: I) -> Self {
        let mut digest = Self::EMPTY;
        members.into_iter().for_each(|member| digest.add(member));
        digest
    }
}

impl Member {
    /// What an entry adds; `created_at` in Unix seconds.
    #[must_use]
    pub fn of_entry(id: &str, revision_number: i64, created_at: i64) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(ENTRY_LABEL);
        framed(&mut hash, id.as_bytes());
        hash.update(&revision_number.to_be_bytes());
        hash.update(&created_at.to_be_bytes());
        Self::first_half(hash)
    }

    /// What a bundle adds.
    #[must_use]
    pub fn of_bundle(bundle: &Bundle) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(BUNDLE_LABEL);
        framed(&mut hash, bundle.trust_domain.as_str().as_bytes());
        hash.update(canonical(bundle).finish().as_ref());
        Self::first_half(hash)
    }

    fn first_half(hash: Context) -> Self {
        let hash = hash.finish();
        let bytes = hash.as_ref().first_chunk().copied().unwrap_or_default();
        Self(u128::from_le_bytes(bytes))
    }
}

fn canonical(bundle: &Bundle) -> Context {
    let mut hash = Context::new(&SHA256);
    hash.update(&bundle.sequence_number.to_be_bytes());
    hash.update(&bundle.refresh_hint.to_be_bytes());
    length(&mut hash, bundle.x509_authorities.len());
    for authority in &bundle.x509_authorities {
        framed(&mut hash, authority.certificate.der());
        hash.update(&[u8::from(authority.tainted)]);
    }
    length(&mut hash, bundle.jwt_authorities.len());
    for authority in &bundle.jwt_authorities {
        framed(&mut hash, authority.key_id.as_bytes());
        framed(&mut hash, authority.public_key.spki());
        hash.update(&authority.expires_at.to_be_bytes());
        hash.update(&[u8::from(authority.tainted)]);
    }
    hash
}

fn framed(hash: &mut Context, bytes: &[u8]) {
    length(hash, bytes.len());
    hash.update(bytes);
}

/// Lengths of values are far below 4 GiB; one that is not would only collide with 4 GiB - 1.
fn length(hash: &mut Context, length: usize) {
    hash.update(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::X509Authority;
    use crate::id::TrustDomain;
    use crate::x509_svid::Certificate;

    fn bundle() -> Bundle {
        let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        let certificate = Certificate::from_der(&[1, 2, 3]);
        bundle
            .x509_authorities
            .push(X509Authority::new(certificate));
        bundle.sequence_number = 7;
        bundle
    }

    fn hash(parts: &[&[u8]]) -> [u8; 32] {
        let hash = aws_lc_rs::digest::digest(&SHA256, &parts.concat());
        hash.as_ref().try_into().unwrap()
    }

    #[test]
    fn an_entry_is_hashed_as_the_format_says() {
        let expected = hash(&[
            b"vane.sync.set.v1",
            &[0, 0, 0, 2],
            b"ab",
            &[0, 0, 0, 0, 0, 0, 0, 3],
            &[0xff; 8],
        ]);
        let digest: Digest = [Member::of_entry("ab", 3, -1)].into_iter().collect();
        assert_eq!(digest.to_bytes(), expected[..16]);
    }

    #[test]
    fn a_bundle_is_hashed_as_the_format_says() {
        let canonical = hash(&[
            &[0, 0, 0, 0, 0, 0, 0, 7],
            &[0; 8],
            &[0, 0, 0, 1],
            &[0, 0, 0, 3, 1, 2, 3, 0],
            &[0; 4],
        ]);
        let label: &[u8] = b"vane.sync.bundle.v1";
        let expected = hash(&[label, &[0, 0, 0, 11], b"example.org", &canonical]);
        let digest: Digest = [Member::of_bundle(&bundle())].into_iter().collect();
        assert_eq!(digest.to_bytes(), expected[..16]);
    }

    #[test]
    fn members_come_and_go_in_any_order() {
        let members: Vec<Member> = (0..100)
            .map(|n| Member::of_entry(&format!("entry-{n}"), n, 1))
            .collect();
        let mut forward: Digest = members.iter().copied().collect();
        let backward: Digest = members.iter().rev().copied().collect();
        assert_eq!(forward, backward);
        members.iter().for_each(|member| forward.remove(*member));
        assert_eq!(forward, Digest::EMPTY);
    }

    #[test]
    fn each_part_of_a_bundle_counts() {
        let base = Member::of_bundle(&bundle());
        let changes: [fn(&mut Bundle); 4] = [
            |bundle| bundle.sequence_number = 8,
            |bundle| bundle.refresh_hint = 1,
            |bundle| bundle.x509_authorities[0].tainted = true,
            |bundle| bundle.x509_authorities.clear(),
        ];
        for change in changes {
            let mut changed = bundle();
            change(&mut changed);
            assert_ne!(Member::of_bundle(&changed), base);
        }
    }

    #[test]
    fn the_wire_form_is_sixteen_bytes_or_none() {
        let digest = Digest(u128::MAX - 5);
        assert_eq!(Digest::from_bytes(&digest.to_bytes()), Some(digest));
        assert_eq!(Digest::from_bytes(&[]), Some(Digest::EMPTY));
        assert_eq!(Digest::from_bytes(&[0; 15]), None);
        assert_eq!(Digest::from_bytes(&[0; 17]), None);
    }
}
