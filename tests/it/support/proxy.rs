//! A TCP proxy that can fall silent: connections stay, new ones are accepted, and nothing passes.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Between a client and a server on 127.0.0.1, for as long as the process runs.
pub struct Proxy {
    port: u16,
    frozen: Arc<Frozen>,
}

#[derive(Default)]
struct Frozen {
    now: Mutex<bool>,
    changed: Condvar,
}

impl Frozen {
    fn wait(&self) {
        drop(self.changed.wait_while(self.now.lock().unwrap(), |now| *now).unwrap());
    }
}

impl Proxy {
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let frozen = Arc::new(Frozen::default());
        let waits = Arc::clone(&frozen);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, waits) = (client.unwrap(), Arc::clone(&waits));
                thread::spawn(move || {
                    waits.wait();
                    // A server that is away: the client's connection ends.
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                        return;
                    };
                    let (from, to, other) = (
                        client.try_clone().unwrap(),
                        server.try_clone().unwrap(),
                        Arc::clone(&waits),
                    );
                    thread::spawn(move || pass(from, to, &other));
                    pass(server, client, &waits);
                });
            }
        });
        Self { port, frozen }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Silent, or not any more.
    pub fn freeze(&self, frozen: bool) {
        *self.frozen.now.lock().unwrap() = frozen;
        self.frozen.changed.notify_all();
    }
}

/// Until either side has ended.
fn pass(mut from: TcpStream, mut to: TcpStream, frozen: &Frozen) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        frozen.wait();
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    frozen.wait();
    for stream in [from, to] {
        // It may have ended already.
        stream.shutdown(Shutdown::Both).unwrap_or_default();
    }
}
