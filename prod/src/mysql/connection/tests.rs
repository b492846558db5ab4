use super::*;
use crate::mysql::test_server::Server;
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

/// Carries a connection to the server, until the client says these words: they never arrive, and nothing comes back any more.
fn stalling(server: u16, words: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut server = TcpStream::connect(("127.0.0.1", server)).expect("a server");
        let (mut to_client, mut from_server) = (client.try_clone().expect("one"), server.try_clone().expect("one"));
        thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = client.read(&mut buffer).expect("reads");
            if count == 0 || buffer[..count].windows(words.len()).any(|found| found == words.as_bytes()) {
                break;
            }
            server.write_all(&buffer[..count]).expect("writes");
        }
        // It goes when the client goes.
        while client.read(&mut buffer).is_ok_and(|count| count > 0) {}
        let _ = server.shutdown(Shutdown::Both);
    });
    port
}

#[test]
fn a_server_that_hangs_while_it_is_connected_to_is_given_up() {
    let Some(server) = Server::start() else { return };
    let mut database = Database::new(server.settings("t").options, Fuse::default()).expect("a runtime");
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(trouble) = database.run(CONNECT_TIMEOUT, async |_, _| Ok(())) {
        assert!(Instant::now() < deadline, "{trouble:?}");
        database.wait(deadline);
    }
    for words in ["SET SESSION autocommit", "ISOLATION LEVEL", "max_allowed_packet", "SHOW GLOBAL"] {
        let settings = Server::settings_at(stalling(server.port(), words), "t");
        let (send, done) = mpsc::channel();
        thread::spawn(move || {
            let mut database = Database::new(settings.options, Fuse::default()).expect("a runtime");
            send.send(database.run(Duration::from_secs(60), async |_, _| Ok(())))
        });
        let done = done.recv_timeout(CONNECT_TIMEOUT * 10);
        assert!(matches!(&done, Ok(Err(Trouble::Down(_)))), "{words}: {done:?}");
    }
}
