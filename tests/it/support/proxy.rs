//! A TCP proxy, and what may be wrong with the line behind it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// What the line does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Line {
    #[default]
    Open,
    /// Silent: connections stay, new ones are accepted, and what is sent waits.
    Frozen,
    /// Every connection has ended, and so does a new one.
    Cut,
    /// This many bytes pass in a second, each way of each connection.
    Slow(u32),
    /// Connections stay, new ones are accepted, and what the client sends is lost, from the middle of a request on. A
    /// connection that has lost something never passes anything again.
    LosesRequests,
    /// The same of what the server answers: it has done what it was asked.
    LosesAnswers,
    /// Every answer ends in its middle, and its connection with it.
    BreaksAnswers,
}

/// Between a client and a server on 127.0.0.1, for as long as the process runs.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    line: Mutex<Line>,
    changed: Condvar,
    open: Mutex<Vec<TcpStream>>,
}

impl State {
    /// What the line does, once it is not frozen.
    fn wait(&self) -> Line {
        let line = self.line.lock().unwrap();
        *(self.changed.wait_while(line, |line| *line == Line::Frozen).unwrap())
    }

    /// Keeps a connection to cut it, unless the line is cut.
    fn keep(&self, streams: [&TcpStream; 2]) -> bool {
        let mut open = self.open.lock().unwrap();
        open.retain(|stream| stream.peer_addr().is_ok());
        let is_cut = self.wait() == Line::Cut;
        if !is_cut {
            open.extend(streams.map(|stream| stream.try_clone().unwrap()));
        }
        !is_cut
    }
}

impl Proxy {
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let own = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state) = (client.unwrap(), Arc::clone(&own));
                thread::spawn(move || serve(client, server, &state));
            }
        });
        Self { port, state }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on the line does this.
    pub fn set(&self, line: Line) {
        *self.state.line.lock().unwrap() = line;
        self.state.changed.notify_all();
        if line == Line::Cut {
            for stream in self.state.open.lock().unwrap().drain(..) {
                end(&stream);
            }
        }
    }

    /// Silent, or not any more.
    pub fn freeze(&self, frozen: bool) {
        self.set(if frozen { Line::Frozen } else { Line::Open });
    }
}

fn serve(client: TcpStream, server: u16, state: &Arc<State>) {
    state.wait();
    // A server that is away: the client's connection ends.
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
        return;
    };
    if !state.keep([&client, &server]) {
        return;
    }
    let (from, to, other) = (
        client.try_clone().unwrap(),
        server.try_clone().unwrap(),
        Arc::clone(state),
    );
    thread::spawn(move || pass(from, to, Line::LosesRequests, &other));
    pass(server, client, Line::LosesAnswers, state);
}

/// Until either side has ended. `loss`: what the line does when it loses what goes this way.
fn pass(mut from: TcpStream, mut to: TcpStream, loss: Line, state: &State) {
    let mut bytes = vec![0; 64 << 10];
    let mut lost = false;
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        let line = state.wait();
        let mut passes = read;
        if lost {
            continue;
        }
        let breaks = line == Line::BreaksAnswers && loss == Line::LosesAnswers;
        if line == loss || breaks {
            lost = true;
            passes = read / 2;
        }
        let passed = slowly(&mut to, &bytes[..passes], state);
        if passed.is_err() || breaks {
            break;
        }
    }
    state.wait();
    for stream in [from, to] {
        end(&stream);
    }
}

/// As slowly as the line is while it goes on.
fn slowly(to: &mut TcpStream, mut bytes: &[u8], state: &State) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let mut piece = bytes.len();
        if let Line::Slow(bytes_per_second) = state.wait() {
            // Twenty pieces a second.
            thread::sleep(Duration::from_millis(50));
            piece = piece.min((bytes_per_second as usize / 20).max(1));
        }
        to.write_all(&bytes[..piece])?;
        bytes = &bytes[piece..];
    }
    Ok(())
}

/// It may have ended already.
fn end(stream: &TcpStream) {
    stream.shutdown(Shutdown::Both).unwrap_or_default();
}
