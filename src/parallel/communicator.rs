//! Messages between processes, and what is built of them.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::time::Duration;

/// What a message is about. Messages from one process to another under one tag arrive in the order
/// in which they were sent; those of different tags may be received in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(u32);

impl Tag {
    /// Of the collective operations of this module.
    const COLLECTIVE: Tag = Tag(1);
    /// The first that is free for sums.
    const FIRST_SUM: u32 = 16;

    /// Of the running sum number `index`.
    pub fn sum(index: usize) -> Self {
        Tag(Self::FIRST_SUM.saturating_add(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    /// The number that stands for it on the wire.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// One of `world` processes that train together, numbered by `rank` from 0.
///
/// Every process calls the collective operations (all but [`send`](Self::send) and
/// [`receive`](Self::receive)) in the same order. A process that waits longer than its patience
/// ends the job.
pub trait Communicator: Send + Sync {
    /// Number of this process.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world(&self) -> usize;

    /// Sends bytes to a process, and may return before they have arrived.
    ///
    /// # Errors
    /// If the connection fails.
    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()>;

    /// Waits for bytes from a process, exactly as many as there is room for.
    ///
    /// # Errors
    /// If the connection fails or another number of bytes comes.
    fn receive(&self, from: usize, tag: Tag, into: &mut [u8]) -> Result<()>;

    /// Waits until all bytes sent have left.
    ///
    /// # Errors
    /// If the connection fails.
    fn settle(&self) -> Result<()>;

    /// Bytes that this process has sent so far.
    fn bytes_sent(&self) -> u64;

    /// How long to wait for a message from now on; `None` is for ever.
    fn set_patience(&self, patience: Option<Duration>);

    /// Ends all processes, this one with them.
    fn abort(&self, exit_code: u8) -> !;

    /// Whether this process is the one that writes.
    fn is_root(&self) -> bool {
        self.rank() == 0
    }

    /// Whether there are other processes.
    fn is_shared(&self) -> bool {
        self.world() > 1
    }

    /// Replaces the bytes of every process by those of `root`; all have the same length.
    ///
    /// Along a binomial tree: in round k, the 2ᵏ processes that have the bytes pass them on.
    ///
    /// # Errors
    /// If the connection fails.
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let (world, place) = (self.world(), (self.rank() + self.world() - root) % self.world());
        let rank_at = |place: usize| (place + root) % world;
        let mut width = 1;
        while width < world {
            if place < width && place + width < world {
                self.send(rank_at(place + width), Tag::COLLECTIVE, bytes)?;
            } else if (width..2 * width).contains(&place) {
                self.receive(rank_at(place - width), Tag::COLLECTIVE, bytes)?;
            }
            width *= 2;
        }
        Ok(())
    }

    /// The bytes of `root`, of any length, on every process; the others' own are dropped.
    ///
    /// # Errors
    /// If the connection fails.
    fn broadcast_any(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        if !self.is_shared() {
            return Ok(bytes);
        }
        let mut length = (bytes.len() as u64).to_le_bytes();
        self.broadcast(root, &mut length)?;
        let mut bytes = bytes;
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        self.broadcast(root, &mut bytes)?;
        Ok(bytes)
    }

    /// Sends bytes of any length to a process that waits in [`receive_any`](Self::receive_any).
    ///
    /// # Errors
    /// If the connection fails.
    fn send_any(&self, to: usize, bytes: &[u8]) -> Result<()> {
        self.send(to, Tag::COLLECTIVE, &(bytes.len() as u64).to_le_bytes())?;
        self.send(to, Tag::COLLECTIVE, bytes)
    }

    /// Waits for the bytes of a process's [`send_any`](Self::send_any).
    ///
    /// # Errors
    /// If the connection fails.
    fn receive_any(&self, from: usize) -> Result<Vec<u8>> {
        let mut length = [0; 8];
        self.receive(from, Tag::COLLECTIVE, &mut length)?;
        let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
        self.receive(from, Tag::COLLECTIVE, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of all processes, of any length, in the order of their ranks, on every process.
    ///
    /// # Errors
    /// If the connection fails.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        if !self.is_shared() {
            return Ok(vec![own.to_vec()]);
        }
        let mut joined = Vec::new();
        let mut put = |bytes: &[u8]| {
            joined.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            joined.extend_from_slice(bytes);
        };
        if self.is_root() {
            put(own);
            for rank in 1..self.world() {
                put(&self.receive_any(rank)?);
            }
        } else {
            self.send_any(0, own)?;
        }
        let joined = self.broadcast_any(0, joined)?;
        let mut rest = joined.as_slice();
        let mut parts = Vec::with_capacity(self.world());
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let length = u64::from_le_bytes(*length) as usize;
            ensure!(length <= after.len(), "a gathered message is cut off");
            let (part, after) = after.split_at(length);
            parts.push(part.to_vec());
            rest = after;
        }
        ensure!(parts.len() == self.world(), "{} messages of {}", parts.len(), self.world());
        Ok(parts)
    }

    /// [`gather`](Self::gather) of numbers.
    ///
    /// # Errors
    /// If the connection fails.
    fn gather_f64(&self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        Ok(self.gather(&f64_bytes(own))?.iter().map(|bytes| f64_numbers(bytes)).collect())
    }

    /// Replaces the numbers of every process by the sum over all processes, the same bytes on all of
    /// them; the order of the summands depends on how many there are.
    ///
    /// Around a ring (Patarasuk & Yuan 2009): in P − 1 rounds each process adds its part of a piece
    /// to what comes and passes it on, and in P − 1 more the sums go round: 2 n (P − 1) numbers in
    /// all for n numbers.
    ///
    /// # Errors
    /// If the connection fails.
    fn all_reduce(&self, numbers: &mut [f32]) -> Result<()> {
        let (rank, world, count) = (self.rank(), self.world(), numbers.len());
        let piece = |index: usize| {
            let index = index % world;
            index * count / world..(index + 1) * count / world
        };
        let (next, before) = ((rank + 1) % world, (rank + world - 1) % world);
        let mut incoming = vec![0.0; count.div_ceil(world)];
        for round in 0..2 * (world - 1) {
            let (from, into) =
                (piece(rank + 2 * world - round), piece(rank + 2 * world - round - 1));
            self.send(next, Tag::COLLECTIVE, f32_bytes(&mut numbers[from]))?;
            let incoming = &mut incoming[..into.len()];
            self.receive(before, Tag::COLLECTIVE, f32_bytes(incoming))?;
            match round < world - 1 {
                true => numbers[into].iter_mut().zip(incoming).for_each(|(sum, x)| *sum += *x),
                false => numbers[into].copy_from_slice(incoming),
            }
        }
        Ok(())
    }

    /// The sum of the tensors of all processes, on the device of this one's; see
    /// [`all_reduce`](Self::all_reduce).
    ///
    /// # Errors
    /// If the connection fails or the tensor is not in f32.
    fn sum_tensor(&self, own: &Tensor) -> Result<Tensor> {
        let mut numbers = own.flatten_all()?.to_vec1::<f32>()?;
        self.all_reduce(&mut numbers)?;
        Ok(Tensor::from_vec(numbers, own.shape(), own.device())?)
    }

    /// The tensor of `root`, on the device of this process's own, which has the same shape.
    ///
    /// # Errors
    /// If the connection fails or the tensor is not in f32.
    fn broadcast_tensor(&self, root: usize, own: &Tensor) -> Result<Tensor> {
        let is_root = self.rank() == root;
        let mut numbers = match is_root {
            true => own.flatten_all()?.to_vec1::<f32>()?,
            false => vec![0.0; own.elem_count()],
        };
        self.broadcast(root, f32_bytes(&mut numbers))?;
        match is_root {
            true => Ok(own.clone()),
            false => Ok(Tensor::from_vec(numbers, own.shape(), own.device())?),
        }
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// If the connection fails.
    fn barrier(&self) -> Result<()> {
        self.gather(&[]).map(drop)
    }
}

/// What is said where the connection to a process has closed.
pub(super) fn end_of_another(rank: usize) -> String {
    format!("rank {rank} has ended")
}

/// Whether a line says [`end_of_another`].
pub(super) fn tells_of_the_end_of_another(line: &str) -> bool {
    line.split("rank ")
        .skip(1)
        .any(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(" has ended"))
}

/// Says that a process has waited too long, before it ends the job.
pub(super) fn tell_of_long_wait(rank: usize, waited: Duration, what: &str) {
    tracing::error!(
        "rank {rank} has waited {} s {what}: that process hangs, has died, or works longer than \
         train.data_parallel.timeout_seconds allows; the job ends, and `--resume` goes on from the \
         newest checkpoint with as many processes as there are",
        waited.as_secs()
    );
}

/// Numbers as bytes that may be changed, as they lie in memory: processes of one run are of one
/// byte order.
pub fn f32_bytes(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: every byte of an f32 is initialised and every pattern of bytes is an f32; u8 needs no
    // alignment, and the borrow goes on in the result.
    unsafe {
        std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val::<[f32]>(numbers))
    }
}

/// Numbers as bytes.
pub fn f64_bytes(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The numbers of [`f64_bytes`].
pub fn f64_numbers(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|chunk| f64::from_le_bytes(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Channels;
    use super::*;

    #[test]
    fn all_get_what_the_root_has_and_what_each_has() {
        for world in 1..=5 {
            for root in 0..world {
                let results = Channels::run(world, move |communicator| {
                    let rank = communicator.rank();
                    let mut bytes = vec![rank as u8; 3];
                    communicator.broadcast(root, &mut bytes).unwrap();
                    let own: Vec<f64> = (0..rank).map(|i| i as f64 + 0.5).collect();
                    let gathered = communicator.gather_f64(&own).unwrap();
                    let any = communicator.broadcast_any(root, vec![7; rank]).unwrap();
                    communicator.barrier().unwrap();
                    (bytes, gathered, any)
                });
                for (bytes, gathered, any) in results {
                    assert_eq!(bytes, [root as u8; 3]);
                    assert_eq!(any, vec![7; root]);
                    for (rank, numbers) in gathered.iter().enumerate() {
                        assert_eq!(numbers.len(), rank);
                        assert!(numbers.iter().enumerate().all(|(i, x)| *x == i as f64 + 0.5));
                    }
                    assert_eq!(gathered.len(), world);
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_all_and_the_same_on_all() {
        for (world, count) in [(1, 5), (2, 7), (3, 2), (4, 0), (5, 1000)] {
            let results = Channels::run(world, |communicator| {
                let rank = communicator.rank();
                let mut numbers: Vec<f32> = (0..count).map(|i| (i * (rank + 1)) as f32).collect();
                communicator.all_reduce(&mut numbers).unwrap();
                (numbers, communicator.bytes_sent())
            });
            let ranks = world * (world + 1) / 2;
            let expected: Vec<f32> = (0..count).map(|i| (i * ranks) as f32).collect();
            assert!(results.iter().all(|(sum, _)| *sum == expected), "{count} over {world}");
            let sent: u64 = results.iter().map(|(_, sent)| sent).sum();
            assert_eq!(sent as usize, 2 * 4 * count * (world - 1));
        }
    }

    #[test]
    fn messages_of_other_tags_do_not_overtake() {
        let results = Channels::run(2, |communicator| {
            if communicator.rank() == 0 {
                for (tag, byte) in [(0, 1), (1, 2), (0, 3)] {
                    communicator.send(1, Tag::sum(tag), &[byte]).unwrap();
                }
                return vec![communicator.bytes_sent() as u8];
            }
            let mut received = [0; 3];
            for (tag, byte) in [1, 0, 0].into_iter().zip(received.chunks_mut(1)) {
                communicator.receive(0, Tag::sum(tag), byte).unwrap();
            }
            received.to_vec()
        });
        assert_eq!(results, [vec![3], vec![2, 1, 3]]);
    }
}
