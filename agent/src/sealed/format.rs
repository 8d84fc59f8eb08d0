//! The format that the sealed file and its key have in common.

/// The format that this version writes, and the highest that it reads.
pub const FORMAT: u16 = 1;

/// The file was written by a newer version of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has format {format}, and this version of vane-agent reads up to {FORMAT}")]
pub struct Newer {
    /// Its format.
    pub format: u16,
}
