//! Messages over TCP, which need no library: for launchers that say where rank 0 can be met
//! (`torchrun` and its like), and for what NCCL does not carry.
//!
//! ```text
//! meeting    rank 0 listens at MASTER_ADDR:MASTER_PORT; every other process connects there, says its
//!            rank and where it listens itself, and is told where all others listen
//! mesh       then each connects to those of lower rank, so that any two have one connection
//! message    tag (4 bytes), length (8 bytes), bytes; little-endian
//! ```
//!
//! One thread for each peer writes and another reads, so that sending never waits for the other
//! side to receive. Whoever reaches the port and knows the greeting can take part: it is meant for
//! machines that trust each other, as those of MPI and NCCL do.

use super::communicator::{Communicator, Tag, end_of_another, tell_of_long_wait};
use super::meeting::{Connections, Meeting};
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A process among those that met.
pub struct Tcp {
    rank: usize,
    /// By rank; none at this one's own place.
    peers: Vec<Option<Peer>>,
    sent: AtomicU64,
    patience: Mutex<Option<Duration>>,
}

/// Another process.
struct Peer {
    socket: TcpStream,
    outbox: Mutex<Sender<Vec<u8>>>,
    shared: Arc<Shared>,
}

/// What the threads of a connection know.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    arrived: VecDeque<(u32, Vec<u8>)>,
    /// Messages that have not left yet.
    leaving: usize,
    /// Whether nothing more comes, or can leave.
    has_ended: bool,
}

impl Tcp {
    /// Meets the other processes, which may take as long as `patience`.
    ///
    /// # Errors
    /// If they do not come, the port is taken, or one of them belongs to another job.
    pub fn connect(meeting: &Meeting, patience: Duration) -> Result<Self> {
        let Connections { sockets } = meeting.hold(patience)?;
        let peer = |socket: Option<TcpStream>| socket.map(Peer::new).transpose();
        Ok(Self {
            rank: meeting.rank,
            peers: sockets.into_iter().map(peer).collect::<Result<_>>()?,
            sent: AtomicU64::new(0),
            patience: Mutex::default(),
        })
    }

    fn peer(&self, rank: usize) -> Result<&Peer> {
        let peer = self.peers.get(rank).and_then(Option::as_ref);
        peer.with_context(|| format!("rank {rank} is no other process"))
    }

    /// Waits until there is an answer, or ends the job where patience does.
    fn wait<T>(
        &self,
        shared: &Shared,
        what: &dyn Fn() -> String,
        mut ask: impl FnMut(&mut State) -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let patience = *locked(&self.patience);
        let mut state = locked(&shared.state);
        loop {
            if let Some(answer) = ask(&mut state)? {
                return Ok(answer);
            }
            let waited = started.elapsed();
            if patience.is_some_and(|patience| waited > patience) {
                tell_of_long_wait(self.rank, waited, &what());
                self.abort(1);
            }
            let until = patience.map_or(Duration::from_secs(60), |patience| {
                patience.saturating_sub(waited) + Duration::from_millis(1)
            });
            let woken = shared.changed.wait_timeout(state, until);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    fn new(socket: TcpStream) -> Result<Self> {
        socket.set_nodelay(true)?;
        let (outbox, to_write) = channel();
        let shared = Arc::<Shared>::default();
        let (reading, writing) = (socket.try_clone()?, socket.try_clone()?);
        let (of_reader, of_writer) = (shared.clone(), shared.clone());
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        named("tcp-read").spawn(move || of_reader.read(reading))?;
        named("tcp-write").spawn(move || of_writer.write(writing, &to_write))?;
        Ok(Self { socket, outbox: Mutex::new(outbox), shared })
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
        self.changed.notify_all();
    }

    fn read(&self, mut socket: TcpStream) {
        let mut message = || -> std::io::Result<(u32, Vec<u8>)> {
            let (mut tag, mut length) = ([0; 4], [0; 8]);
            socket.read_exact(&mut tag)?;
            socket.read_exact(&mut length)?;
            // Memory is taken for what comes, not for what is announced.
            let (length, mut bytes) = (u64::from_le_bytes(length), Vec::new());
            (&mut socket).take(length).read_to_end(&mut bytes)?;
            match bytes.len() as u64 == length {
                true => Ok((u32::from_le_bytes(tag), bytes)),
                false => Err(std::io::ErrorKind::UnexpectedEof.into()),
            }
        };
        while let Ok(message) = message() {
            self.change(|state| state.arrived.push_back(message));
        }
        self.change(|state| state.has_ended = true);
    }

    fn write(&self, mut socket: TcpStream, messages: &Receiver<Vec<u8>>) {
        for message in messages {
            if socket.write_all(&message).is_err() {
                return self.change(|state| state.has_ended = true);
            }
            self.change(|state| state.leaving -= 1);
        }
    }
}

impl Communicator for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        let peer = self.peer(to)?;
        let length = (bytes.len() as u64).to_le_bytes();
        let message = [&tag.number().to_le_bytes(), length.as_slice(), bytes].concat();
        peer.shared.change(|state| state.leaving += 1);
        let sent = locked(&peer.outbox).send(message);
        sent.ok().with_context(|| end_of_another(to))?;
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&self, from: usize, tag: Tag, into: &mut [u8]) -> Result<()> {
        let what = || format!("for a message from rank {from}");
        let bytes = self.wait(&self.peer(from)?.shared, &what, |state| {
            let place = state.arrived.iter().position(|(other, _)| *other == tag.number());
            match place.and_then(|place| state.arrived.remove(place)) {
                Some((_, bytes)) => Ok(Some(bytes)),
                None if state.has_ended => bail!(end_of_another(from)),
                None => Ok(None),
            }
        })?;
        ensure!(
            bytes.len() == into.len(),
            "{} bytes came from rank {from} where {} were due",
            bytes.len(),
            into.len()
        );
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        let peers =
            self.peers.iter().enumerate().filter_map(|(rank, peer)| Some((rank, peer.as_ref()?)));
        let settled = peers.map(|(rank, peer)| {
            let what = || format!("for rank {rank} to take messages");
            self.wait(&peer.shared, &what, |state| match state.leaving {
                0 => Ok(Some(())),
                _ if state.has_ended => bail!(end_of_another(rank)),
                _ => Ok(None),
            })
        });
        // One that has gone does not cost the others what was sent to them.
        settled.fold(Ok(()), Result::and)
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn set_patience(&self, patience: Option<Duration>) {
        *locked(&self.patience) = patience;
    }

    /// The others see the connections close.
    fn abort(&self, exit_code: u8) -> ! {
        std::process::exit(exit_code.into())
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        // What was sent still leaves; nobody is left to tell where it cannot.
        if !std::thread::panicking() && self.settle().is_err() {
            tracing::debug!("rank {} leaves before its last messages were taken", self.rank);
        }
        for peer in self.peers.iter().flatten() {
            let _ = peer.socket.shutdown(Shutdown::Write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn processes_meet_and_talk() {
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let stranger = std::thread::spawn(move || {
            let patience = Instant::now();
            while patience.elapsed() < Duration::from_secs(5) {
                if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) {
                    return socket.write_all(b"GET / HTTP/1.1\r\n\r\n").is_ok();
                }
            }
            false
        });
        let world = 4;
        let results: Vec<_> = std::thread::scope(|scope| {
            let join = |rank| {
                scope.spawn(move || {
                    // Rank 0 comes last, after a stranger has knocked in vain or at its door.
                    std::thread::sleep(Duration::from_millis(if rank == 0 { 100 } else { 0 }));
                    let meeting = Meeting { address: format!("127.0.0.1:{port}"), rank, world };
                    let tcp = Tcp::connect(&meeting, Duration::from_secs(30)).unwrap();
                    tcp.set_patience(Some(Duration::from_secs(30)));
                    for tag in [1, 0] {
                        tcp.send((rank + 1) % world, Tag::sum(tag), &[rank as u8, tag as u8])
                            .unwrap();
                    }
                    let mut received = [[0; 2]; 2];
                    for (tag, into) in received.iter_mut().enumerate() {
                        tcp.receive((rank + world - 1) % world, Tag::sum(tag), into).unwrap();
                    }
                    let mut bytes = vec![rank as u8; 1 << 20];
                    tcp.broadcast(2, &mut bytes).unwrap();
                    (received, bytes[77], tcp.gather(&[rank as u8]).unwrap())
                })
            };
            let threads: Vec<_> = (0..world).map(join).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (rank, (received, byte, gathered)) in results.into_iter().enumerate() {
            let before = ((rank + world - 1) % world) as u8;
            assert_eq!(received, [[before, 0], [before, 1]]);
            assert_eq!((byte, gathered), (2, vec![vec![0], vec![1], vec![2], vec![3]]));
        }
        stranger.join().unwrap();
    }

    /// Where rank 1 has gone, its messages are lost, but not those that rank 2 has yet to take.
    #[test]
    fn one_that_has_gone_does_not_end_the_wait_for_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = || {
            let other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let peer = Peer::new(listener.accept().unwrap().0).unwrap();
            peer.shared.change(|state| state.leaving = 1);
            (peer, other)
        };
        let ((gone, _first), (slow, _second)) = (peer(), peer());
        gone.shared.change(|state| state.has_ended = true);
        let shared = slow.shared.clone();
        let peers = vec![None, Some(gone), Some(slow)];
        let tcp = Tcp { rank: 0, peers, sent: AtomicU64::new(0), patience: Mutex::default() };
        let taken = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            shared.change(|state| state.leaving = 0);
        });
        let started = Instant::now();
        let error = tcp.settle().unwrap_err().to_string();
        assert!(error.contains("rank 1 has ended"), "{error}");
        assert!(started.elapsed() >= Duration::from_millis(150), "it has not waited for rank 2");
        taken.join().unwrap();
    }

    #[test]
    fn a_length_that_nothing_follows_ends_the_connection_and_takes_no_memory() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = Peer::new(listener.accept().unwrap().0).unwrap();
        other.write_all(&[[0; 4].as_slice(), &u64::MAX.to_le_bytes(), &[7; 9]].concat()).unwrap();
        drop(other);
        let started = Instant::now();
        while !locked(&peer.shared.state).has_ended {
            assert!(started.elapsed() < Duration::from_secs(20), "the reader has died");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(locked(&peer.shared.state).arrived.is_empty());
    }

    #[test]
    fn who_does_not_come_is_named() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let lonely = |rank, world| {
            let meeting = Meeting { address: address.clone(), rank, world };
            let met = Tcp::connect(&meeting, Duration::from_millis(300));
            format!("{:#}", met.err().expect("nobody is there"))
        };
        let first = lonely(0, 3);
        assert!(first.contains("ranks 1, 2 have not come"), "{first}");
        let second = lonely(1, 3);
        assert!(second.contains(&address), "{second}");
    }
}
