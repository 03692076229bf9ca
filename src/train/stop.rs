//! Signals: while data is prepared, one leaves at once; after that, the first Ctrl-C, SIGTERM,
//! SIGHUP, SIGUSR1 or SIGXCPU asks for a clean stop, the second leaves at once.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXCPU, SIGXFSZ};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether a signal has asked the run to stop.
#[derive(Clone, Debug, Default)]
pub struct StopSignal {
    signal: Arc<AtomicUsize>,
    /// One flag for each signal, set where the next one leaves at once.
    leave: Vec<Arc<AtomicBool>>,
    is_preparing: Arc<AtomicBool>,
}

impl StopSignal {
    /// Listens for signals from now on. Until [`StopSignal::preparation_ends`] each of them ends
    /// the process: there is nothing yet to be saved. SIGXFSZ is heard and asks for nothing, so
    /// that a file at the size limit is an error of the write and not the end of the process.
    /// SIGHUP stays ignored where it was (under `nohup`).
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn install() -> std::io::Result<Self> {
        let mut stop = Self::default();
        stop.is_preparing.store(true, Ordering::Relaxed);
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGXCPU] {
            if signal == SIGHUP && hang_up_is_ignored() {
                continue;
            }
            // In this order: the second signal finds the flag set and exits, the first one sets it.
            let asked = Arc::new(AtomicBool::new(true));
            stop.leave.push(Arc::clone(&asked));
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
            flag::register(signal, asked)?;
            flag::register_usize(signal, Arc::clone(&stop.signal), signal as usize)?;
        }
        Ok(stop)
    }

    /// From now on the first signal asks for a clean stop.
    pub fn preparation_ends(&self) {
        self.is_preparing.store(false, Ordering::Relaxed);
        self.leave.iter().for_each(|leave| leave.store(false, Ordering::Relaxed));
    }

    /// Asks for a stop as if by this signal.
    pub fn request(&self, signal: i32) {
        if self.is_preparing.load(Ordering::Relaxed) {
            std::process::exit(128 + signal);
        }
        self.signal.store(signal as usize, Ordering::Relaxed);
    }

    /// The signal that asked for a stop, if any.
    pub fn requested(&self) -> Option<i32> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}

/// Whether the process was started with SIGHUP ignored, as far as the system tells.
fn hang_up_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}
