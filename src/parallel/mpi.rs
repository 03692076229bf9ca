//! Messages by MPI, whichever implementation the machine has.
//!
//! Only sending and receiving of bytes is asked of it; waiting is done here, so that it has an end
//! and leaves the cores to others meanwhile, as MPI's own does not. All calls come from the thread
//! that trains.

use super::communicator::{Communicator, Tag, tell_of_long_wait};
use anyhow::{Context, Result, bail};
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::AsCommunicator;
use mpi::topology::Communicator as _;
use mpi::{Threading, raw::AsRaw};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one message at most: MPI counts them in an int.
const PIECE: usize = 1 << 30;
/// For so long a waiting process asks without a pause.
const SPIN: Duration = Duration::from_micros(50);
/// Pause between two questions after that, at most.
const PAUSE: Duration = Duration::from_micros(500);

/// A process among those that MPI's launcher started.
pub struct Mpi {
    /// Dropped last: it ends MPI.
    universe: Universe,
    rank: usize,
    world: usize,
    under_way: Mutex<Vec<Sending>>,
    sent: AtomicU64,
    patience: Mutex<Option<Duration>>,
}

/// Bytes that MPI may still read.
struct Sending {
    request: ffi::MPI_Request,
    to: usize,
    _bytes: Box<[u8]>,
}

// SAFETY: a request is a handle that any one thread at a time may use, and the mutex around it sees
// to that.
unsafe impl Send for Sending {}

impl Mpi {
    /// Joins the other processes.
    ///
    /// # Errors
    /// If MPI was started before in this process.
    pub fn start() -> Result<Self> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .context("MPI was started twice in one process")?;
        let world = universe.world();
        let (rank, world) = (usize::try_from(world.rank())?, usize::try_from(world.size())?);
        Ok(Self {
            universe,
            rank,
            world,
            under_way: Mutex::default(),
            sent: AtomicU64::new(0),
            patience: Mutex::default(),
        })
    }

    fn communicator(&self) -> ffi::MPI_Comm {
        self.universe.world().as_communicator().as_raw()
    }

    /// Asks until there is an answer, or ends the job where patience does.
    fn wait<T>(
        &self,
        what: &dyn Fn() -> String,
        mut ask: impl FnMut() -> Result<ControlFlow<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let patience = *self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pause = Duration::from_micros(10);
        loop {
            if let ControlFlow::Break(answer) = ask()? {
                return Ok(answer);
            }
            let waited = started.elapsed();
            if patience.is_some_and(|patience| waited > patience) {
                // MPI may still write into the buffer of a message that comes late, so that there
                // is no way back from here.
                tell_of_long_wait(self.rank, waited, &what());
                self.abort(1);
            }
            if waited < SPIN {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(pause);
                pause = (2 * pause).min(PAUSE);
            }
        }
    }

    /// Forgets what has left.
    fn sweep(&self) -> Result<()> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = 0;
        while index < under_way.len() {
            if test(&mut under_way[index].request)?.is_some() {
                under_way.swap_remove(index);
            } else {
                index += 1;
            }
        }
        Ok(())
    }
}

/// Whether a request is done, and its status.
fn test(request: &mut ffi::MPI_Request) -> Result<Option<ffi::MPI_Status>> {
    let (mut done, mut status) = (0, MaybeUninit::uninit());
    // SAFETY: the request is one that MPI gave and has not been waited for to its end.
    let code = unsafe { ffi::MPI_Test(request, &mut done, status.as_mut_ptr()) };
    check(code, "MPI_Test")?;
    // SAFETY: MPI fills the status of what is done.
    Ok((done != 0).then(|| unsafe { status.assume_init() }))
}

/// By default MPI ends the job where a call fails; where it was told not to, this says so.
fn check(code: c_int, call: &str) -> Result<()> {
    if code != ffi::MPI_SUCCESS as c_int {
        bail!("{call} failed with code {code}");
    }
    Ok(())
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        self.sweep()?;
        for piece in bytes.chunks(PIECE) {
            let piece: Box<[u8]> = piece.into();
            let mut request = MaybeUninit::uninit();
            // SAFETY: the bytes stay where they are until the request is done, since both are kept
            // together; the request is written by MPI.
            let request = unsafe {
                let code = ffi::MPI_Isend(
                    piece.as_ptr().cast(),
                    piece.len() as c_int,
                    ffi::RSMPI_UINT8_T,
                    to as c_int,
                    tag.number() as c_int,
                    self.communicator(),
                    request.as_mut_ptr(),
                );
                check(code, "MPI_Isend")?;
                request.assume_init()
            };
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            under_way.push(Sending { request, to, _bytes: piece });
        }
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&self, from: usize, tag: Tag, into: &mut [u8]) -> Result<()> {
        for piece in into.chunks_mut(PIECE) {
            let mut request = MaybeUninit::uninit();
            // SAFETY: the piece is borrowed until the request is done, since this function does not
            // return before; the request is written by MPI.
            let mut request = unsafe {
                let code = ffi::MPI_Irecv(
                    piece.as_mut_ptr().cast(),
                    piece.len() as c_int,
                    ffi::RSMPI_UINT8_T,
                    from as c_int,
                    tag.number() as c_int,
                    self.communicator(),
                    request.as_mut_ptr(),
                );
                check(code, "MPI_Irecv")?;
                request.assume_init()
            };
            let what = || format!("for a message from rank {from}");
            let status = self.wait(&what, || {
                Ok(match test(&mut request)? {
                    Some(status) => ControlFlow::Break(status),
                    None => ControlFlow::Continue(()),
                })
            })?;
            let mut count = 0;
            // SAFETY: the status is that of the message just received.
            let code = unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count) };
            check(code, "MPI_Get_count")?;
            if count as usize != piece.len() {
                bail!("{count} bytes came from rank {from} where {} were due", piece.len());
            }
        }
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        let what = || {
            let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            let to: Vec<String> = under_way.iter().map(|sending| sending.to.to_string()).collect();
            format!("for ranks to take messages (to {})", to.join(", "))
        };
        self.wait(&what, || {
            self.sweep()?;
            let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(match under_way.is_empty() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })
    }

    fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn set_patience(&self, patience: Option<Duration>) {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
    }

    fn abort(&self, exit_code: u8) -> ! {
        self.universe.world().abort(exit_code.into())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // The others wait for what a panicking process will never send.
        if std::thread::panicking() || self.settle().is_err() {
            self.abort(1);
        }
    }
}
