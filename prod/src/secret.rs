//! Secrets: 32 random bytes in a file that only its owner can read. That of the cluster never leaves the process: peers prove that they
//! have it (DESIGN 8). The others are tokens that clients show.

use crate::{
    aside,
    entropy::{Entropy, keyed},
};
use hmac::Mac;
use http::HeaderValue;
use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// What the nodes of a cluster share, or a token. Does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Why there is no secret.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file system said no.
    #[error("the secret {path} cannot be used: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner may read or write it.
    #[error("the secret {path} has mode {mode:03o}; only its owner may have access: chmod 600 {path}")]
    TooOpen {
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not 64 hexadecimal digits.
    #[error("the secret {path} is not 64 hexadecimal digits")]
    Malformed {
        /// Where.
        path: PathBuf,
    },
    /// The system has no entropy.
    #[error("no random bytes for a secret: {0}")]
    Entropy(getrandom::Error),
}

/// The beginning of a file that only its owner may read.
///
/// # Errors
/// It is not there, others than its owner may have access, or it is not text.
pub fn private_text(path: &Path, bytes_max: u64) -> Result<String, SecretError> {
    let io = |source| SecretError::Io { path: path.to_owned(), source };
    let mut file = fs::File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::TooOpen { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    Read::by_ref(&mut file).take(bytes_max).read_to_string(&mut text).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => SecretError::Malformed { path: path.to_owned() },
        _ => io(source),
    })?;
    Ok(text)
}

impl Secret {
    /// From its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It is not there, others than its owner may have access, or it is not a secret.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        // One more than a good one has, so that a longer one shows without being read whole.
        let text = private_text(path, 67)?;
        parse(text.trim_end()).map(Self).ok_or_else(|| SecretError::Malformed { path: path.to_owned() })
    }

    /// Reads the file, or makes a new secret in it if there is none.
    ///
    /// # Errors
    /// As [`Self::load`]; or it cannot be written.
    pub fn load_or_create(path: &Path) -> Result<Self, SecretError> {
        match fs::symlink_metadata(path) {
            Ok(_) => return Self::load(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SecretError::Io { path: path.to_owned(), source }),
        }
        let bytes = Entropy::from_system().map_err(SecretError::Entropy)?.bytes();
        let made = aside::create(path, &(digits(&bytes) + "\n"));
        if made.map_err(|source| SecretError::Io { path: path.to_owned(), source })? { Ok(Self(bytes)) } else { Self::load(path) }
    }

    /// As clients show it. The value is marked as one not to be printed.
    #[must_use]
    pub fn bearer(&self) -> HeaderValue {
        // Digits alone are always a header's value.
        let mut value = HeaderValue::from_str(&format!("Bearer {}", digits(&self.0))).unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    /// Whether these are its digits. Takes the same time for every text of one length.
    pub(crate) fn is_text(&self, text: &str) -> bool {
        // Proofs are compared, which tell nothing of where the texts differ.
        self.verify(&[text.as_bytes()], &self.prove(&[digits(&self.0).as_bytes()]))
    }

    /// The proof over these parts, each of which has a fixed length.
    pub(crate) fn prove(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Whether the proof is the one over these parts. Takes the same time whatever it is.
    pub(crate) fn verify(&self, parts: &[&[u8]], proof: &[u8; 32]) -> bool {
        let mut mac = keyed(&self.0);
        for part in parts {
            mac.update(part);
        }
        mac.verify(&(*proof).into()).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn digits(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn created_once_and_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        let made = Secret::load_or_create(&path).expect("created");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(Secret::load_or_create(&path).expect("found") == made);
        assert!(Secret::load(&path).expect("found") == made);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "nothing is left aside");
        let other = Secret::load_or_create(&dir.path().join("other")).expect("created");
        assert!(other != made);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        Secret::load_or_create(&path).expect("created");
        for mode in [0o640, 0o604, 0o620, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            assert!(matches!(Secret::load(&path), Err(SecretError::TooOpen { mode: found, .. }) if found == mode));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("ours");
        assert!(Secret::load(&path).is_ok());
    }

    #[test]
    fn what_is_not_a_secret_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secret");
        let good = "0f".repeat(32);
        for (text, fine) in [
            (good.clone(), true),
            (format!("{good}\n"), true),
            (format!("{good}00"), false),
            (good[1..].to_owned(), false),
            ("zz".repeat(32), false),
        ] {
            fs::write(&path, &text).expect("ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
            assert_eq!(Secret::load(&path).is_ok(), fine, "{text:?}");
        }
        fs::write(&path, [0xff, 0xfe]).expect("ours");
        assert!(matches!(Secret::load(&path), Err(SecretError::Malformed { .. })));
        assert!(matches!(Secret::load(&dir.path().join("none")), Err(SecretError::Io { .. })));
    }

    #[test]
    fn a_proof_holds_for_its_parts_and_secret_alone() {
        let (ours, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let proof = ours.prove(&[b"a", b"b"]);
        assert!(ours.verify(&[b"a", b"b"], &proof));
        assert!(!ours.verify(&[b"a", b"c"], &proof));
        assert!(!other.verify(&[b"a", b"b"], &proof));
        assert_eq!(format!("{ours:?}"), "Secret(..)");
    }
}
