use super::*;
use crate::net::{
    Network, TokioNetwork,
    tls::{Listener, Stream},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

fn authority(dir: &Path) -> Authority {
    Authority::load_or_create(&dir.join("tls")).expect("an authority")
}

async fn listen(network: &TlsNetwork) -> (Listener, String) {
    let listener = network.listen("127.0.0.1:0").await.expect("a port");
    let address = TlsNetwork::local_address(&listener).expect("an address");
    (listener, address)
}

/// Whether a byte comes back from an echo of one byte.
async fn echoes(mut listener: Listener, connect: impl Future<Output = io::Result<Stream>>) -> bool {
    let echo = tokio::spawn(async move {
        let mut stream = TlsNetwork::accept(&mut listener).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(&byte).await?;
        stream.flush().await
    });
    let ask = async {
        let mut stream = connect.await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok::<_, io::Error>(byte == *b"x")
    };
    let answer = timeout(Duration::from_secs(10), ask).await.expect("an end");
    echo.abort();
    answer.unwrap_or(false)
}

#[tokio::test]
async fn nodes_of_one_authority_speak_and_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = authority(dir.path());
    let again = authority(dir.path());
    let other = tempfile::tempdir().expect("a directory");
    let theirs = authority(other.path());
    let network = ours.between_nodes().expect("a network");
    let dial = async |from: &TlsNetwork| {
        let (listener, address) = listen(&network).await;
        echoes(listener, from.connect(&address)).await
    };
    assert!(dial(&again.between_nodes().expect("a network")).await);
    assert!(!dial(&theirs.between_nodes().expect("a network")).await, "a node of another authority");
    assert!(!dial(&TlsNetwork::default()).await, "a node without TLS");

    // Who dials such a node is not taken in either.
    let (listener, address) = listen(&theirs.between_nodes().expect("a network")).await;
    assert!(!echoes(listener, network.connect(&address)).await);

    // A client without a certificate, and one that the authority gave another name.
    let (listener, address) = listen(&network).await;
    let connector = trusting(&dir.path().join("tls/ca.pem")).expect("a connector");
    assert!(!echoes(listener, Stream::connect(&address, &connector, node_name().expect("a name"))).await);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["somebody.example".to_owned()]).expect("names");
    let leaf = params.signed_by(&key, &ours.issuer).expect("a certificate");
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(ours.roots().expect("roots"))
        .with_client_auth_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("a configuration");
    let (listener, address) = listen(&network).await;
    let connector = Arc::new(config).into();
    assert!(!echoes(listener, Stream::connect(&address, &connector, node_name().expect("a name"))).await, "another name");
}

#[tokio::test]
async fn clients_check_the_name_and_are_asked_for_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = authority(dir.path());
    let network = ours.to_clients(&["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("a network");
    let connector = trusting(&dir.path().join("tls/ca.pem")).expect("a connector");
    for (name, is_good) in [("localhost", true), ("127.0.0.1", true), ("elsewhere.example", false), ("127.0.0.2", false)] {
        let (listener, address) = listen(&network).await;
        let name: ServerName<'_> = name.try_into().expect("a name");
        assert_eq!(echoes(listener, Stream::connect(&address, &connector, name)).await, is_good);
    }
    assert!(matches!(ours.to_clients(&["no name".to_owned()]), Err(TlsError::Name(_))));
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so_and_who_says_nothing_holds_up_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let network = authority(dir.path()).to_clients(&[]).expect("a network");
    let (mut listener, address) = listen(&network).await;
    let serve = tokio::spawn(async move {
        // Accepted at once, whatever they say.
        let _silent = TlsNetwork::accept(&mut listener).await?;
        let mut stream = TlsNetwork::accept(&mut listener).await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        Ok::<_, io::Error>(all)
    });
    let _silent = TokioNetwork.connect(&address).await.expect("a connection");
    let mut client = TokioNetwork.connect(&address).await.expect("a connection");
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    timeout(Duration::from_secs(10), client.read_to_string(&mut answer)).await.expect("an end").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 400 ") && head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!((&body["code"], &body["applied"], &body["retryable"]), (&"tls".into(), &"no".into(), &false.into()));
    assert!(body["hint"].is_string());
    drop(client);
    assert_eq!(serve.await.expect("a task").expect("an end"), b"", "nothing of it reaches the reader");
}

#[test]
fn an_authority_that_is_not_whole_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    drop(authority(dir.path()));
    let tls = dir.path().join("tls");
    let other = tempfile::tempdir().expect("a directory");
    drop(authority(other.path()));
    let load = || Authority::load_or_create(&tls).map(drop).map_err(|error| error.to_string());
    let key = fs::read(tls.join(KEY)).expect("a key");
    fs::set_permissions(tls.join(KEY), fs::Permissions::from_mode(0o644)).expect("permissions");
    assert!(load().is_err_and(|error| error.contains("chmod 600")));
    fs::set_permissions(tls.join(KEY), fs::Permissions::from_mode(0o600)).expect("permissions");
    fs::write(tls.join(KEY), fs::read(other.path().join("tls").join(KEY)).expect("a key")).expect("written");
    assert!(load().is_err_and(|error| error.contains("does not certify")));
    fs::write(tls.join(KEY), "nonsense").expect("written");
    assert!(load().is_err_and(|error| error.contains("not a private key")));
    fs::write(tls.join(KEY), key).expect("written");
    assert_eq!(load(), Ok(()));
    fs::write(tls.join(CERTIFICATE), "nonsense").expect("written");
    assert!(load().is_err_and(|error| error.contains("no certificate")));
    fs::remove_file(tls.join(CERTIFICATE)).expect("removed");
    assert!(load().is_err_and(|error| error.contains("ca.pem")));
}

#[test]
fn an_authority_that_cannot_be_put_in_place_leaves_no_key_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let tls = dir.path().join("tls");
    fs::create_dir(&tls).expect("made");
    fs::write(tls.join("other"), "").expect("written");
    assert!(create(&tls).is_err(), "the directory is another's");
    let left: Vec<_> = fs::read_dir(dir.path()).expect("there").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["tls"]);
}

#[test]
fn a_certificate_that_has_no_end_is_not_read_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("ca.pem");
    fs::File::create(&file).expect("made").set_len(FILE_BYTES_MAX + 1).expect("grown");
    assert!(certificates(&file).is_err_and(|error| error.to_string().contains("more than")));
}

/// A certificate that is nobody's authority, as one that was bought for a host.
#[test]
fn a_given_certificate_that_may_not_certify_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(["host.example".to_owned()]).expect("names");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let leaf = params.self_signed(&key).expect("a certificate");
    fs::write(dir.path().join(CERTIFICATE), leaf.pem()).expect("written");
    fs::write(dir.path().join(KEY), key.serialize_pem()).expect("written");
    fs::set_permissions(dir.path().join(KEY), fs::Permissions::from_mode(0o600)).expect("permissions");
    assert!(Authority::load_or_create(dir.path()).is_err_and(|error| error.to_string().contains("no certificate of an authority")));
}
