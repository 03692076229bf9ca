//! Threads of one process in place of processes, for tests of what is built on messages.

use super::communicator::{Communicator, Tag};
use anyhow::{Context, Result, ensure};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

type Message = (Tag, Vec<u8>);

/// A thread among others that stands for a process.
pub struct Channels {
    rank: usize,
    to: Vec<Mutex<Sender<Message>>>,
    from: Vec<Mutex<(Receiver<Message>, Vec<Message>)>>,
    sent: AtomicU64,
}

impl Channels {
    /// What `work` returns on each of `world` threads.
    pub fn run<T: Send>(world: usize, work: impl Fn(&Channels) -> T + Sync) -> Vec<T> {
        let mut to: Vec<Vec<_>> = (0..world).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<_>> = (0..world).map(|_| Vec::new()).collect();
        for sender in to.iter_mut() {
            for receiver in from.iter_mut() {
                let (tx, rx) = channel();
                sender.push(Mutex::new(tx));
                receiver.push(Mutex::new((rx, Vec::new())));
            }
        }
        let members = to.into_iter().zip(from).enumerate();
        let members: Vec<Channels> = members
            .map(|(rank, (to, from))| Channels { rank, to, from, sent: AtomicU64::new(0) })
            .collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                members.iter().map(|member| scope.spawn(|| work(member))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }
}

impl Communicator for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.to.len()
    }

    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let sender = self.to[to].lock().expect("not poisoned");
        sender.send((tag, bytes.to_vec())).context("the other thread has ended")
    }

    fn receive(&self, from: usize, tag: Tag, into: &mut [u8]) -> Result<()> {
        let mut place = self.from[from].lock().expect("not poisoned");
        let (receiver, early) = &mut *place;
        let bytes = match early.iter().position(|(other, _)| *other == tag) {
            Some(index) => early.remove(index).1,
            None => loop {
                let wait = Duration::from_secs(30);
                let (other, bytes) = receiver.recv_timeout(wait).context("nothing comes")?;
                if other == tag {
                    break bytes;
                }
                early.push((other, bytes));
            },
        };
        ensure!(bytes.len() == into.len(), "{} bytes where {} fit", bytes.len(), into.len());
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn set_patience(&self, _: Option<Duration>) {}

    fn abort(&self, exit_code: u8) -> ! {
        panic!("aborted with {exit_code}")
    }
}
