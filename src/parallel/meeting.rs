//! How processes that know one address find each other over TCP.

use anyhow::{Context, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What a process says first: who does not is not one of this program.
const GREETING: [u8; 8] = *b"lrpt-1\r\n";
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// For so long a process that has connected may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Where the processes of a job meet, and which of them this one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// Host and port where rank 0 listens.
    pub address: String,
    /// Number of this process.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
}

/// A connection to each other process, by rank.
pub(super) struct Connections {
    pub sockets: Vec<Option<TcpStream>>,
}

/// Who has connected, and the port at which that process listens.
struct Introduced {
    socket: TcpStream,
    rank: usize,
    port: u16,
}

impl Meeting {
    /// Waits for all to come and connects this process to each of them.
    pub(super) fn hold(&self, patience: Duration) -> Result<Connections> {
        let until = Instant::now() + patience;
        let mut sockets: Vec<Option<TcpStream>> = (0..self.world).map(|_| None).collect();
        if self.rank == 0 {
            let listener = TcpListener::bind(&*self.address).with_context(|| {
                format!(
                    "rank 0 cannot listen at {} (MASTER_ADDR:MASTER_PORT), which must be an \
                     address of its own machine and a free port",
                    self.address
                )
            })?;
            let ports = self.accept(&listener, &mut sockets, until)?;
            self.tell_where_all_are(&mut sockets, &ports)?;
            return Ok(Connections { sockets });
        }
        let mut first = connect(&self.address, until)
            .with_context(|| format!("rank {} does not reach rank 0", self.rank))?;
        let listener = TcpListener::bind((first.local_addr()?.ip(), 0))?;
        self.introduce(&mut first, listener.local_addr()?.port())?;
        let others = others(&mut first, until)?;
        ensure!(others.len() + 1 == self.world, "rank 0 knows of {} processes", others.len() + 1);
        sockets[0] = Some(first);
        for (rank, address) in others.iter().enumerate().take(self.rank - 1) {
            let rank = rank + 1;
            let mut socket = connect(address, until)
                .with_context(|| format!("rank {} does not reach rank {rank}", self.rank))?;
            self.introduce(&mut socket, 0)?;
            sockets[rank] = Some(socket);
        }
        self.accept(&listener, &mut sockets, until)?;
        Ok(Connections { sockets })
    }

    fn introduce(&self, socket: &mut TcpStream, port: u16) -> Result<()> {
        let (rank, world) = (self.rank as u32, self.world as u32);
        let numbers = [rank.to_le_bytes(), world.to_le_bytes(), u32::from(port).to_le_bytes()];
        socket.write_all(&[GREETING.as_slice(), &numbers.concat()].concat())?;
        Ok(())
    }

    /// Takes connections until all processes of higher rank have one; the ports where they listen.
    fn accept(
        &self,
        listener: &TcpListener,
        sockets: &mut [Option<TcpStream>],
        until: Instant,
    ) -> Result<Vec<u16>> {
        listener.set_nonblocking(true)?;
        let mut ports = vec![0; self.world];
        loop {
            let missing: Vec<usize> =
                (self.rank + 1..self.world).filter(|rank| sockets[*rank].is_none()).collect();
            if missing.is_empty() {
                return Ok(ports);
            }
            let introduced = match listener.accept() {
                Ok((socket, from)) => self.introduced(socket, from)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) => return Err(error).context("a connection cannot be taken"),
            };
            match introduced {
                Some(Introduced { socket, rank, port }) => {
                    ensure!(
                        sockets.get(rank).is_some_and(Option::is_none) && rank > self.rank,
                        "two processes say that they are rank {rank}: is RANK set for each?"
                    );
                    (sockets[rank], ports[rank]) = (Some(socket), port);
                }
                None if Instant::now() > until => {
                    let missing: Vec<String> = missing.iter().map(usize::to_string).collect();
                    bail!("ranks {} have not come to rank {}", missing.join(", "), self.rank)
                }
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Who has connected; none if it is a stranger.
    fn introduced(&self, mut socket: TcpStream, from: SocketAddr) -> Result<Option<Introduced>> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(INTRODUCTION))?;
        let mut said = [0; 20];
        let greeted = socket.read_exact(&mut said).is_ok() && said[..8] == GREETING;
        if !greeted {
            tracing::warn!("{from} has connected and is none of this job's processes; left alone");
            return Ok(None);
        }
        socket.set_read_timeout(None)?;
        let number = |place: usize| {
            said[place..].first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let (rank, world, port) = (number(8) as usize, number(12) as usize, number(16));
        ensure!(
            world == self.world,
            "{from} is one of {world} processes, this one of {}: two jobs meet at {}; give each \
             its own MASTER_PORT",
            self.world,
            self.address
        );
        Ok(Some(Introduced { socket, rank, port: u16::try_from(port)? }))
    }

    fn tell_where_all_are(&self, sockets: &mut [Option<TcpStream>], ports: &[u16]) -> Result<()> {
        let addresses = sockets.iter().zip(ports).filter_map(|(socket, port)| {
            let ip = socket.as_ref()?.peer_addr().map(|address| address.ip());
            Some(ip.map(|ip| SocketAddr::new(ip, *port).to_string()))
        });
        let list = addresses.collect::<std::io::Result<Vec<String>>>()?.join("\n");
        let told = [&(list.len() as u64).to_le_bytes(), list.as_bytes()].concat();
        for socket in sockets.iter_mut().flatten() {
            socket.write_all(&told)?;
        }
        Ok(())
    }
}

/// Where all processes but rank 0 listen, as rank 0 tells once it has met them.
fn others(first: &mut TcpStream, until: Instant) -> Result<Vec<String>> {
    let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
    first.set_read_timeout(Some(left))?;
    let mut told = || -> std::io::Result<Vec<u8>> {
        let mut length = [0; 8];
        first.read_exact(&mut length)?;
        // More than the addresses of a hundred thousand processes.
        let mut list = vec![0; u64::from_le_bytes(length).min(1 << 24) as usize];
        first.read_exact(&mut list)?;
        Ok(list)
    };
    let told = told().context("rank 0 has not told where the others are: some have not come")?;
    first.set_read_timeout(None)?;
    Ok(String::from_utf8(told)?.lines().map(str::to_owned).collect())
}

/// A connection to an address where someone will listen before long.
fn connect(address: &str, until: Instant) -> Result<TcpStream> {
    loop {
        match TcpStream::connect(address) {
            // On one machine a connection may meet itself, where the port is not taken yet.
            Ok(socket) if socket.local_addr().ok() == socket.peer_addr().ok() => {}
            Ok(socket) => return Ok(socket),
            Err(error) if Instant::now() > until => {
                return Err(error).with_context(|| format!("nobody listens at {address}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
