//! TLS (RFC 8446): the certificate authority of a cluster, and what nodes and clients make of it. A node draws a key at every start and has
//! the authority certify it: no key of a node is ever stored, none needs renewal. Nodes show each other certificates of that one name that
//! only nodes have; clients check the name that they asked for.

use crate::{
    aside,
    net::tls::{TlsConnector, TlsNetwork},
    secret::{SecretError, private_text},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use std::{
    fs,
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;
use tokio_rustls::rustls::{
    self, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

/// The name that a node's certificate has for other nodes. Not one that a public authority certifies.
const NODE: &str = "node.twinshard";
/// The authority's certificate, then those above it, if there are any.
const CERTIFICATE: &str = "ca.pem";
/// Its key.
const KEY: &str = "ca-key.pem";
/// The most bytes that are read of either.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key is not there, or others may read it.
    #[error(transparent)]
    Key(#[from] SecretError),
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Bad {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that no certificate can have.
    #[error("'{0}' is no name of a host and no address")]
    Name(String),
    /// A certificate could not be made.
    #[error("no certificate could be made: {0}")]
    Made(#[from] rcgen::Error),
    /// The parts do not fit together.
    #[error("no TLS can be made of the authority: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Who certifies the nodes of a cluster.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate first.
    chain: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Reads `ca.pem` and `ca-key.pem` of a directory, or makes both if there is no such directory.
    ///
    /// # Errors
    /// They cannot be read or made, others than their owner may read the key, or the key is not that of the certificate.
    pub fn load_or_create(dir: &Path) -> Result<Self, TlsError> {
        if !dir.exists() {
            create(dir)?;
        }
        let path = dir.join(CERTIFICATE);
        let chain = certificates(&path)?;
        let bad = |error: &dyn std::fmt::Display| TlsError::Bad { path: path.clone(), reason: error.to_string() };
        let own = chain.first().ok_or_else(|| bad(&"there is no certificate in it"))?;
        let key_path = dir.join(KEY);
        let key = KeyPair::from_pem(&private_text(&key_path, FILE_BYTES_MAX)?)
            .map_err(|error| TlsError::Bad { path: key_path, reason: format!("not a private key: {error}") })?;
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(|error| bad(&error))?;
        if !issuer.key_usages().is_empty() && !issuer.key_usages().contains(&KeyUsagePurpose::KeyCertSign) {
            return Err(bad(&"this is no certificate of an authority: its key may not certify others"));
        }
        let authority = Self { issuer, chain };
        // A key of another certificate would show in handshakes only.
        let (certified, _) = authority.certify(&[])?;
        let verifier = authority.node_verifier()?;
        let leaf = certified.first().ok_or_else(|| bad(&"nothing was certified"))?;
        verifier
            .verify_client_cert(leaf, &[], UnixTime::now())
            .map_err(|error| bad(&format!("it does not certify what {KEY} signs: {error}")))?;
        Ok(authority)
    }

    /// A new key with a certificate for these names, and for a node among nodes.
    fn certify(&self, names: &[String]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(String::as_str).chain([NODE]).map(alternative).collect::<Result<_, _>>()?;
        params.distinguished_name.push(DnType::CommonName, NODE);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = std::iter::once(certificate.der().clone()).chain(self.chain.iter().cloned()).collect();
        Ok((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for own in self.chain.iter().take(1) {
            roots.add(own.clone())?;
        }
        Ok(roots)
    }

    fn node_verifier(&self) -> Result<Arc<NodeVerifier>, TlsError> {
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        Ok(Arc::new(NodeVerifier { chains, name: node_name()? }))
    }

    /// The network of nodes: both sides show a certificate.
    ///
    /// # Errors
    /// If no key can be drawn or certified.
    pub fn between_nodes(&self) -> Result<TlsNetwork, TlsError> {
        let (chain, key) = self.certify(&[])?;
        let server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.node_verifier()?)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)?;
        Ok(TlsNetwork::new(server, Some((client, node_name()?))))
    }

    /// The network of clients: the node shows a certificate for these names of hosts and addresses, clients none.
    ///
    /// # Errors
    /// If a name is none, or no key can be drawn or certified.
    pub fn to_clients(&self, names: &[String]) -> Result<TlsNetwork, TlsError> {
        let (chain, key) = self.certify(names)?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsNetwork::new(server, None))
    }
}

/// What a client needs that trusts the authorities in a file.
///
/// # Errors
/// If the file cannot be read or holds no certificate.
pub fn trusting(file: &Path) -> Result<TlsConnector, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| TlsError::Bad { path: file.to_owned(), reason: error.to_string() })?;
    }
    if roots.is_empty() {
        return Err(TlsError::Bad { path: file.to_owned(), reason: "there is no certificate in it".to_owned() });
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn node_name() -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(NODE).map_err(|_| TlsError::Name(NODE.to_owned()))
}

fn alternative(name: &str) -> Result<SanType, TlsError> {
    let bad = || TlsError::Name(name.to_owned());
    match ServerName::try_from(name).map_err(|_| bad())? {
        ServerName::IpAddress(address) => Ok(SanType::IpAddress(IpAddr::from(address))),
        ServerName::DnsName(name) => name.as_ref().try_into().map(SanType::DnsName).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let mut text = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text));
    let read = read.map_err(|source| TlsError::Io { path: path.to_owned(), source })?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(TlsError::Bad { path: path.to_owned(), reason: format!("it has more than {FILE_BYTES_MAX} bytes") });
    }
    let found: Result<_, _> = CertificateDer::pem_slice_iter(&text).collect();
    found.map_err(|error| TlsError::Bad { path: path.to_owned(), reason: format!("not certificates: {error}") })
}

/// Makes an authority in a directory of its own, which appears whole or not at all: of several that start at once one wins.
fn create(dir: &Path) -> Result<(), TlsError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "Twinshard cluster");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let failed = |source| TlsError::Io { path: dir.to_owned(), source };
    let aside = aside::beside(dir).map_err(failed)?;
    let made = (|| {
        fs::DirBuilder::new().mode(0o755).create(&aside)?;
        for (name, mode, text) in [(CERTIFICATE, 0o644, authority.pem()), (KEY, 0o600, authority.key().serialize_pem())] {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(aside.join(name))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        fs::File::open(&aside)?.sync_all()?;
        fs::rename(&aside, dir)
    })();
    match made {
        Ok(()) => Ok(()),
        Err(source) => {
            // A key that nobody uses is not left lying about.
            match fs::remove_dir_all(&aside) {
                Err(left) if left.kind() != io::ErrorKind::NotFound => {
                    return Err(TlsError::Io { path: aside, source: left });
                }
                Ok(()) | Err(_) => {}
            }
            // Somebody else was quicker: theirs it is.
            if dir.join(KEY).exists() { Ok(()) } else { Err(failed(source)) }
        }
    }
}

/// Takes a certificate of the authority that has the name of a node: one that it gave to somebody else opens nothing.
#[derive(Debug)]
struct NodeVerifier {
    chains: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chains.verify_client_cert(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
